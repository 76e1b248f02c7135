"""The hostfiles, read by DeepSpeed's own parser."""

from __future__ import annotations

from pathlib import Path

import pytest
from deepspeed.launcher.runner import fetch_hostfile

FOLDER = Path(__file__).resolve().parents[2] / "hostfiles"


@pytest.mark.parametrize(
    ("name", "slots"),
    [
        ("8node", {f"worker-{node}": 8 for node in range(1, 9)}),
        ("2node", {"worker-1": 8, "worker-2": 8}),
        ("localhost", {"localhost": 2}),
    ],
)
def test_deepspeed_reads_hosts_and_slots(name, slots):
    assert dict(fetch_hostfile(str(FOLDER / name)) or {}) == slots


def test_the_8_nodes_with_zero2_make_the_global_batch_of_the_paper():
    from simvtp_ds.ds_settings import load_settings

    ranks = sum((fetch_hostfile(str(FOLDER / "8node")) or {}).values())
    assert load_settings(FOLDER.parent / "ds_configs" / "zero2.json", ranks).global_batch(ranks) == 1024
