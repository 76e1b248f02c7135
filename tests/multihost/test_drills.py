"""Drills: whatever happens to a run, it ends by itself, says who and why, leaves no process and a good checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from simvtp_ds.engine.checkpoint import newest_valid
from tests.multihost.drills import GRACE, TIMEOUT, Drill

pytestmark = pytest.mark.multihost


def test_a_rank_killed_in_the_middle_of_a_save_costs_that_save_only(drill: Drill, undisturbed: Path) -> None:
    launch = drill.start("save", "1:save:8:SIGKILL")
    drill.ends(launch, "rank killed in a save", "rank 0: rank 1 on worker-2 shows no sign of life since")
    newest = newest_valid(launch.run)
    assert newest is not None and newest.name == "step_00000004"
    drill.resumes_exactly(launch, undisturbed)


def test_a_host_whose_link_is_cut_is_named_by_the_others(drill: Drill) -> None:
    launch = drill.start("cut")
    launch.wait_for_step(6)
    drill.cluster.hosts.cut("worker-2")
    since = time.monotonic()
    told = "rank 0: .*rank 1 on worker-2 shows no sign of life since"
    drill.ends(launch, "link of a host cut", told, since, TIMEOUT + GRACE)
    assert newest_valid(launch.run) is not None


def test_a_rank_that_is_stopped_is_ended_and_named(drill: Drill) -> None:
    launch = drill.start("stopped", "1:end:6:SIGSTOP")
    output = drill.ends(launch, "rank stopped (SIGSTOP)", r"worker-2: rank 1: frozen for \d+ s", within=TIMEOUT + GRACE)
    assert "rank 0: " in output and "rank 1 on worker-2 shows no sign of life since" in output
    assert newest_valid(launch.run) is not None


def test_a_host_that_is_missing_at_the_start_is_named(drill: Drill) -> None:
    drill.cluster.hosts.cut("worker-2")
    hostfile = drill.cluster.hosts.hostfile(1, drill.cluster.hosts.names[:2])
    check = drill.cluster.hosts.run(["python", "launch/check_hosts.py", str(hostfile)], check=False)
    assert check.returncode == 1
    assert f"error: host worker-2 of {hostfile}: it cannot be reached: " in check.stdout
    launch = drill.start("missing", run__step_timeout=15)
    drill.ends(launch, "host missing at the start", "rank 0: .*rank 1 never came", drill.begins(launch), 15 + GRACE)


@pytest.mark.parametrize(
    "place", ["backward", pytest.param("data", marks=pytest.mark.slow), pytest.param("end", marks=pytest.mark.slow)]
)
def test_a_killed_rank_ends_the_run_and_is_named(drill: Drill, undisturbed: Path, place: str) -> None:
    launch = drill.start(f"killed_{place}", f"1:{place}:7:SIGKILL")
    drill.ends(launch, f"rank killed ({place})", "rank 0: rank 1 on worker-2 shows no sign of life since")
    drill.resumes_exactly(launch, undisturbed)
