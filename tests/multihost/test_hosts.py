"""The real launchers over real ssh between hosts: every way to start learns what one process learns."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ROOT, Launch, Launcher, free_port, losses
from tests.multihost.cluster import Cluster

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


def test_hosts_are_asked_before_a_run_and_what_is_wrong_with_one_is_told(cluster: Cluster) -> None:
    hosts = cluster.hosts
    hostfile = str(hosts.hostfile(2, hosts.names[:3]))
    command = ["python", "launch/check_hosts.py", hostfile]
    assert hosts.run(command).stdout == "3 hosts with 6 slots answer\n"
    hosts.cut("worker-2")
    hosts.stop_sshd("worker-3")
    try:
        answer = hosts.run(command, check=False)
    finally:
        hosts.restore("worker-2")
        hosts.start_sshd("worker-3")
    assert answer.returncode == 1
    cut, refused = answer.stdout.splitlines()
    assert cut.startswith(f"error: host worker-2 of {hostfile}: it cannot be reached: ") and "timed out" in cut
    assert refused.startswith(f"error: host worker-3 of {hostfile}: it cannot be reached: ") and "refused" in refused


def test_a_key_that_asks_for_a_passphrase_is_told_in_one_line(cluster: Cluster) -> None:
    hosts, key = cluster.hosts, str(cluster.hosts.folder / "client")
    change = ["ssh-keygen", "-q", "-p", "-f", key]
    subprocess.run([*change, "-N", "secret", "-P", ""], check=True, capture_output=True)
    try:
        hostfile = str(hosts.hostfile(1, hosts.names[:1]))
        answer = hosts.run(["python", "launch/check_hosts.py", hostfile], check=False)
    finally:
        subprocess.run([*change, "-N", "", "-P", "secret"], check=True, capture_output=True)
    assert answer.returncode == 1
    assert answer.stdout.count("\n") == 1 and f"the key {key} asks for a passphrase" in answer.stdout


def test_eight_hosts_of_the_hostfile_learn_what_one_process_learns(cluster: Cluster, one_process: Path) -> None:
    launch = cluster.deepspeed("eight", zero2(8), "--hostfile", "hostfiles/8node", "--num_gpus", "1", **FIELDS)
    check(launch, one_process, cluster, cluster.hosts.names)


def test_two_hosts_with_two_ranks_each_learn_what_one_process_learns(cluster: Cluster, one_process: Path) -> None:
    hosts = cluster.hosts.names[:2]
    hostfile = str(cluster.hosts.hostfile(2, hosts))
    check(cluster.deepspeed("two", zero2(4), "--hostfile", hostfile, **FIELDS), one_process, cluster, hosts * 2)


NOT_4 = "@".join(f"worker-{number}" for number in range(1, 9) if number != 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "hosts"),
    [
        (["--include", "worker-2:1@worker-5:0,7@worker-8:3"], ["worker-2", "worker-5", "worker-5", "worker-8"]),
        (["--exclude", f"{NOT_4}@worker-4:0,1,2,3,4,5", "--force_multi"], ["worker-4", "worker-4"]),
    ],
    ids=["include", "exclude"],
)
def test_chosen_hosts_and_slots_learn_what_one_process_learns(
    cluster: Cluster, one_process: Path, choice: list[str], hosts: list[str]
) -> None:
    run = choice[0].removeprefix("--")
    launch = cluster.deepspeed(run, zero2(len(hosts)), "--hostfile", "hostfiles/8node", *choice, **FIELDS)
    check(launch, one_process, cluster, hosts)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["no_ssh", "torchrun", "srun"])
def test_a_start_on_every_host_without_ssh_learns_what_one_process_learns(
    cluster: Cluster, one_process: Path, way: str
) -> None:
    hosts, port = cluster.hosts.names[:2], str(free_port())
    config, script = zero2(2 if way == "srun" else 4), "launch/pretrain.py"
    words = [script, *cluster.launcher.arguments(script, way, config, FIELDS)]
    meeting = ["--master_addr", hosts[0], "--master_port", port]

    def command(number: int) -> list[str]:
        if way == "no_ssh":
            hostfile = str(cluster.hosts.hostfile(2, hosts))
            return ["deepspeed", "--hostfile", hostfile, "--no_ssh", "--node_rank", str(number), *meeting, *words]
        if way == "torchrun":
            shape = ["--nnodes", "2", "--nproc_per_node", "2", "--node_rank", str(number)]
            return ["torchrun", *shape, *meeting, *words]
        slurm = {  # what srun sets for two tasks on two nodes
            "SLURM_JOB_ID": port,
            "SLURM_STEP_ID": "0",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": "0",
            "SLURM_STEP_NODELIST": "worker-[1-2]",
            "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        }
        return ["env", *(f"{name}={value}" for name, value in slurm.items()), "python", *words]

    launches = [cluster.start(way, command(number), host) for number, host in enumerate(hosts)]
    for launch in launches[1:]:
        launch.succeed()
    check(launches[0], one_process, cluster, hosts if way == "srun" else hosts * 2)
