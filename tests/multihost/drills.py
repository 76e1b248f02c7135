"""What all drills have in common: how a run has to end, what a second start makes of it, and the table."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simvtp_ds.engine.checkpoint import newest_valid
from tests.integration.conftest import Launch, deepspeed_json, losses
from tests.multihost.cluster import Cluster

TIMEOUT = 30.0  # run.step_timeout of the drills, in seconds; a first step on two busy cores has taken more than 20
GRACE = 60.0  # "within a minute of its time-out"
DRIVER = "tests/multihost/drivers/fault.py"
CONFIG = deepspeed_json()
# As long as no drill ends it, and the same schedule for all: a resumed run can be compared with an undisturbed one.
FIELDS: dict[str, Any] = {
    "schedule__max_steps": 100000,
    "run__log_every": 1,
    "run__save_every": 4,
    "run__step_timeout": TIMEOUT,
}
LAST = 14  # step at which a resumed or undisturbed run stops itself


def stop_at(step: int) -> dict[str, Any]:
    """Fields of a run whose rank 0 gets SIGTERM in step `step`: it saves and ends well."""
    return {**FIELDS, "fault": f"0:end:{step}:SIGTERM"}


@dataclass
class Drill:
    """One fault and what became of the run."""

    cluster: Cluster
    table: Path

    def start(self, run: str, fault: str = "0:end:0:SIGTERM", slots: int = 1, hosts: int = 2, **fields: Any) -> Launch:
        """A run over the first hosts, a rank on each slot; the fault that happens by itself, or none."""
        names = self.cluster.hosts.names[:hosts]
        hostfile = str(self.cluster.hosts.hostfile(slots, names))
        return self.cluster.deepspeed(
            run, CONFIG, "--hostfile", hostfile, driver=DRIVER, **{**FIELDS, "fault": fault, **fields}
        )

    def begins(self, launch: Launch, host: str = "worker-1", patience: float = 120) -> float:
        """When a rank on `host` has finished its imports and starts to wait for the others."""
        deadline = time.monotonic() + patience
        while not any("guardian.py" in words for words in self.cluster.hosts.processes(host).values()):
            assert launch.process.poll() is None, launch.process.communicate()[0][-6000:]
            assert time.monotonic() < deadline, f"no rank on {host} within {patience} s"
            time.sleep(0.1)
        return time.monotonic()

    def ends(self, launch: Launch, name: str, told: str, since: float | None = None, within: float = GRACE) -> str:
        """The run has to end with an error line that `told` describes, leave no process and a good checkpoint.

        Args:
            launch: The run.
            name: Of the drill, in the table.
            told: Regular expression of what the line "error on HOST..." must tell: host, rank and reason.
            since: When it happened (time.monotonic()); None: as soon as the run stopped to make steps.
            within: Seconds in which it has to end.

        Returns:
            All output.
        """
        if since is None:
            since = last_change(launch)
        code, output = launch.wait(timeout=within + 120)
        assert code != 0, output[-6000:]
        assert re.search(rf"error on .*{told}", output), output[-8000:]
        assert self.cluster.hosts.leftovers(since + within - time.monotonic()) == {}
        seconds = time.monotonic() - since
        assert seconds < within, f"it took {seconds:.0f} s"
        self.note(name, code, seconds, launch, [line for line in output.splitlines() if "error on" in line])
        return output

    def note(self, name: str, code: int, seconds: float, launch: Launch, lines: list[str]) -> None:
        """A row of the table."""
        made = max(losses(launch.run), default=0)
        newest = newest_valid(launch.run)
        saved = int(newest.name.removeprefix("step_")) if newest else 0
        row = {"drill": name, "exit": code, "seconds": round(seconds, 1), "made": made, "saved": saved, "told": lines}
        with self.table.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def resumes_exactly(self, launch: Launch, undisturbed: Path) -> None:
        """The next start goes on from the newest checkpoint and learns what the undisturbed run learnt, bit for bit."""
        newest = newest_valid(launch.run)
        assert newest is not None
        output = self.cluster.launcher.torchrun(launch.run.name, CONFIG, driver=DRIVER, **stop_at(LAST)).succeed()
        assert f"resumed from {newest}" in output
        made, expected = losses(launch.run), losses(undisturbed)
        assert sorted(made) == list(range(1, LAST + 1))
        assert made == {step: expected[step] for step in made}
        with self.table.open("a") as file:
            file.write(json.dumps({"run": launch.run.name, "resumed": "exactly"}) + "\n")


def last_change(launch: Launch, quiet: float = 4.0) -> float:
    """When the run wrote its last step, seen once it has written none for some seconds, or has ended."""
    launch.wait_for_step(1)
    known, since = -1, time.monotonic()
    while launch.process.poll() is None and time.monotonic() - since < quiet:
        if (now := len(losses(launch.run))) != known:
            known, since = now, time.monotonic()
        time.sleep(0.1)
    return since


def kill(process: int, number: signal.Signals = signal.SIGKILL) -> float:
    """Send a signal; when that was."""
    os.kill(process, number)
    return time.monotonic()
