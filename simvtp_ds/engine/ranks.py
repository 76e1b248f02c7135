"""Who this process is among the ranks, whichever launcher started it, and what the ranks agree on."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from simvtp_ds.engine.failures import TrainingError


@dataclass(frozen=True)
class Rank:
    """This process among `world_size`."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files of which a run has one."""
        return self.rank == 0


def first_host(nodelist: str) -> str:
    """First host of a SLURM node list: `gpu[003-010,12]` gives `gpu003`."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]+)\])?", nodelist)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST={nodelist!r} names no host; export MASTER_ADDR")
    prefix, ranges = match.groups()
    return prefix if ranges is None else prefix + re.split(r"[,-]", ranges)[0]


def launch_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT for this process.

    `deepspeed` and `torchrun` set them; `srun` sets SLURM_* only, which DeepSpeed does not understand without MPI;
    a plain `python` is one rank of one.

    Raises:
        ValueError: some of the variables are set and others are not.
    """
    wanted = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if "RANK" in environment:
        missing = [name for name in wanted if name not in environment]
        if missing:
            raise ValueError(f"RANK is set but {', '.join(missing)} not: start with deepspeed, torchrun or srun")
        found = {name: environment[name] for name in wanted}
        found["LOCAL_WORLD_SIZE"] = environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", "1"))
        return found
    if "SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        address = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        # Two jobs on one host must not meet: the port comes from the job's number.
        port = environment.get("MASTER_PORT") or str(20000 + int(environment["SLURM_JOB_ID"]) % 20000)
        return {
            "RANK": environment["SLURM_PROCID"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "WORLD_SIZE": environment["SLURM_NTASKS"],
            "LOCAL_WORLD_SIZE": re.split(r"[(,]", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0],
            "MASTER_ADDR": address,
            "MASTER_PORT": port,
        }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def find_rank(environment: MutableMapping[str, str] = os.environ) -> Rank:
    """Read (and complete) the launcher's variables; nothing is connected yet."""
    variables = launch_variables(environment)
    environment.update(variables)
    return Rank(
        rank=int(variables["RANK"]),
        local_rank=int(variables["LOCAL_RANK"]),
        world_size=int(variables["WORLD_SIZE"]),
        local_world_size=int(variables["LOCAL_WORLD_SIZE"]),
    )


def open_store(rank: Rank, timeout: float) -> Any:
    """A connection of one's own to the store in which the ranks meet; rank 0 keeps it, or torchrun does.

    Raises:
        RuntimeError: it does not answer within `timeout` seconds, or its port is taken.
    """
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    c10d: Any = dist  # whose names of stores are documented, but not declared
    store = c10d.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank.is_main and not by_agent,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
        multi_tenant=True,  # the process group of rank 0 shares the server
    )
    # torchrun keeps its store when it starts the ranks again.
    return c10d.PrefixStore(f"simvtp/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def connect(rank: Rank, timeout: float) -> None:
    """Join the process group; every rank must call it.

    Args:
        rank: This process.
        timeout: Seconds after which a collective that somebody does not join fails.

    Raises:
        TrainingError: the port on which the ranks meet is taken.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    if accelerator.device_name() == "cpu":
        if "OMP_NUM_THREADS" not in os.environ:
            # PyTorch gives every process all cores; ranks on one host share them.
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // rank.local_world_size))
    else:
        accelerator.set_device(rank.local_rank)
    try:
        deepspeed.init_distributed(
            dist_backend=accelerator.communication_backend_name(), timeout=timedelta(seconds=timeout), verbose=False
        )
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ["MASTER_PORT"]
        raise TrainingError(f"port {port} is taken, maybe by another run: give another --master_port") from error


class Control:
    """Small host-side agreements between ranks, apart from the device's stream, so that asking costs no synchronise."""

    def __init__(self, timeout: float) -> None:
        self.world_size = dist.get_world_size()
        self.group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value` (small, picklable), in order of rank, on every rank."""
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered
