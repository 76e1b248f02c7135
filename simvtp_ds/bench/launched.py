"""Real trainings on any number of ranks, started by DeepSpeed's launcher, for their speed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from simvtp_ds.bench.cases import BenchError

ROOT = Path(__file__).resolve().parents[2]
KEPT = 40  # lines of a failed launch that its error shows


class Ranks(NamedTuple):
    """Where to start: `nodes` hosts of the hostfile (this machine without one), `per_node` ranks on each."""

    nodes: int
    per_node: int

    @property
    def total(self) -> int:
        """All ranks."""
        return self.nodes * self.per_node


class Ended(NamedTuple):
    """How a command ended."""

    code: int  # negative: the signal that ended it
    output: str


def run_command(command: Sequence[str], timeout: float, variables: dict[str, str] | None = None) -> Ended:
    """Run a command in the project's folder and in a session of its own, which is ended whole after `timeout` seconds.

    stdout and stderr come back together.
    """
    process = subprocess.Popen(
        list(command),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return Ended(-signal.SIGKILL, f"{output}\nended after {timeout:.0f} s")
    return Ended(process.returncode, output)


def launch_command(ranks: Ranks, hostfile: str, program: Sequence[str]) -> list[str]:
    """The deepspeed command for a program; a hostfile's first `ranks.nodes` hosts take part."""
    command = [str(Path(sys.executable).with_name("deepspeed")), f"--master_port={free_port()}"]
    if hostfile:
        command += ["--hostfile", hostfile, "--num_nodes", str(ranks.nodes)]
        if ranks.nodes == 1:  # the launcher must be on that host; with --force_multi it would go there by ssh
            command.append("--force_multi")
    return [*command, "--num_accelerators", str(ranks.per_node), *program]


def free_port() -> int:
    """A port that nobody listens on, below those that Linux hands out to outgoing connections."""
    for port in random.sample(range(10000, 32768), 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise BenchError("no free port between 10000 and 32768")


def train_steps(
    ranks: Ranks,
    hostfile: str,
    deepspeed: dict[str, Any],
    fields: Sequence[str],
    steps: int,
    folder: Path,
    timeout: float,
) -> list[dict[str, Any]]:
    """A training of `steps` steps: what it wrote about each (metrics.jsonl).

    Args:
        ranks: Where.
        hostfile: Of DeepSpeed; empty: this machine.
        deepspeed: The DeepSpeed JSON.
        fields: Further options of launch/pretrain.py.
        steps: How many.
        folder: Empty or absent, for the run; on a file system that all hosts share.
        timeout: Seconds after which it is given up.

    Raises:
        BenchError: It failed; the message has the end of its output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "bench.json"
    config.write_text(json.dumps(deepspeed))
    program = ["launch/pretrain.py", "--deepspeed_config", str(config.resolve()), *fields]
    program += ["--run.dir", str((folder / "run").resolve()), "--schedule.max_steps", str(steps)]
    program += ["--run.log_every", "1", "--run.save_every", str(steps + 1)]
    ended = run_command(launch_command(ranks, hostfile, program), timeout)
    if ended.code:
        tail = "\n".join(ended.output.splitlines()[-KEPT:])
        raise BenchError(f"training on {ranks.total} ranks ended with {ended.code}:\n{tail}")
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
