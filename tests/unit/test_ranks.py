"""Who is who under each launcher."""

from __future__ import annotations

import pytest

from simvtp_ds.engine.ranks import find_rank, first_host, launch_variables


def test_deepspeed_and_torchrun_variables_are_taken_as_they_are() -> None:
    environment = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
    assert launch_variables({**environment, "LOCAL_SIZE": "4"}) == {**environment, "LOCAL_WORLD_SIZE": "4"}


def test_half_set_variables_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="WORLD_SIZE, MASTER_ADDR, MASTER_PORT"):
        launch_variables({"RANK": "0", "LOCAL_RANK": "0"})


def test_srun_variables_are_translated() -> None:
    environment = {
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "16",
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[003-004]",
        "SLURM_JOB_ID": "123456",
        "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    }
    rank = find_rank(environment)
    assert (rank.rank, rank.local_rank, rank.world_size, rank.local_world_size) == (9, 1, 16, 8)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("gpu003", "23456")


def test_a_plain_python_is_one_rank_of_one() -> None:
    rank = find_rank(environment := {})
    assert (rank.rank, rank.world_size, rank.is_main) == (0, 1, True)
    assert environment["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("nodelist", "first"), [("a1", "a1"), ("a1,b2", "a1"), ("gpu[7,9-12]", "gpu7"), ("n-[01-02],m[3]", "n-01")]
)
def test_the_first_host_of_a_slurm_node_list(nodelist: str, first: str) -> None:
    assert first_host(nodelist) == first
