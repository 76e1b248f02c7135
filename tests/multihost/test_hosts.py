"""The real launchers over real ssh between hosts: every way to start learns what one process learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ROOT, Launch, Launcher, losses
from tests.multihost.conftest import Cluster

pytestmark = pytest.mark.multihost

GLOBAL_BATCH = 16
FIELDS: dict[str, Any] = {
    "model__text_dropout": 0.0,  # dropout differs between ranks by intention
    "schedule__max_steps": 3,
}


def zero2(ranks: int) -> dict[str, Any]:
    """ds_configs/zero2_fp32.json, the global batch spread over `ranks`."""
    config = json.loads((ROOT / "ds_configs" / "zero2_fp32.json").read_text())
    return {**config, "train_micro_batch_size_per_gpu": GLOBAL_BATCH // ranks, "gradient_accumulation_steps": 1}


@pytest.fixture(scope="module")
def one_process(launcher: Launcher) -> Path:
    """The same global batches on one rank."""
    launch = launcher.torchrun("one", zero2(1), ranks=1, **FIELDS)
    launch.succeed()
    return launch.run


def check(launch: Launch, one: Path, cluster: Cluster, hosts: list[str]) -> None:
    """The run ran on these hosts, ended well, learnt what one process learns and left no process behind."""
    launch.succeed()
    assert sorted(json.loads((launch.run / "environment.json").read_text())["hosts"]) == sorted(hosts)
    assert sorted(losses(launch.run)) == [1, 2, 3]
    for step, expected in losses(one).items():
        assert losses(launch.run)[step] == pytest.approx(expected, rel=2e-5), f"step {step}"
    assert cluster.hosts.leftovers() == {}


def test_eight_hosts_of_the_hostfile_learn_what_one_process_learns(cluster: Cluster, one_process: Path) -> None:
    launch = cluster.deepspeed("eight", zero2(8), "--hostfile", "hostfiles/8node", "--num_gpus", "1", **FIELDS)
    check(launch, one_process, cluster, cluster.hosts.names)
