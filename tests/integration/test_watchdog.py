"""Two ranks that only meet: whatever becomes of one, the other names it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tests.integration.conftest import DRIVERS, free_port

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("fault", "first", "second"),
    [
        ("killed", "rank 0: rank 1 on HOST shows no sign of life since the ", ""),
        ("raises", "rank 0: rank 1 on HOST ended: 'no such clip' (", "rank 1: KeyError: 'no such clip'"),
        ("slow", "rank 0: no step finished for 4 s, at the end of step 10; rank 1 on HOST is still at the data of", ""),
        ("absent", "rank 0: no step finished for 4 s, at the start; rank 1 never came", ""),
        ("stopped", "rank 0: no step finished for 4 s", "rank 1: frozen for 4 s"),
    ],
)
def test_a_rank_names_the_one_that_it_waits_for_in_vain(fault: str, first: str, second: str) -> None:
    host = platform.node()
    ranks, port = [], str(free_port())
    for rank in ("0", "1"):
        places = {"RANK": rank, "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, str(DRIVERS / "watched_rank.py"), fault]
        ranks.append(subprocess.Popen(command, env={**os.environ, **places}, stderr=subprocess.PIPE, text=True))
    told = [rank.communicate(timeout=90)[1] for rank in ranks]
    assert all(rank.returncode for rank in ranks)
    assert f"error on {host}: {first.replace('HOST', host)}" in told[0]
    assert len([line for line in told[0].splitlines() if line.startswith("error on")]) == 1
    assert second in told[1]
