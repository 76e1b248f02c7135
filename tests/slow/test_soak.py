"""A long run over two hosts under the supervisor, disturbed again and again: it learns what an undisturbed one learns.

SOAK_MINUTES=30 SOAK_SEED=0 SOAK_STEPS=4500 pytest tests/slow/test_soak.py -s
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from tests.integration.conftest import Launch, Launcher, corpus, deepspeed_json, free_port, launcher, losses, metrics
from tests.multihost.hosts import HEAD, Hosts, hosts, workers

__all__ = ["corpus", "launcher"]
MINUTES, SEED = float(os.environ.get("SOAK_MINUTES", "30")), int(os.environ.get("SOAK_SEED", "0"))
STEPS = int(os.environ.get("SOAK_STEPS", str(round(150 * MINUTES))))  # last about as long on two cores
pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 * (4 * MINUTES + 20))]
FIELDS = {"schedule.max_steps": STEPS, "run.save_every": 20, "run.log_every": 5, "run.step_timeout": 60}


class Disturber:
    """Does harm to a run on hosts."""

    def __init__(self, made: Hosts, run: Path, chance: random.Random) -> None:
        self.hosts, self.run, self.chance = made, run, chance
        self.kinds: list[Callable[[], str]] = [
            self.kill_a_rank,
            self.kill_a_rank_while_saving,
            self.kill_a_launcher,
            self.kill_the_command,
            self.cut_a_link,
            self.end_the_ssh_sessions,
            self.freeze_a_rank,
        ]

    def _kill(self, host: str, words: str, number: int = signal.SIGKILL) -> str:
        for process, line in self.hosts.processes(host).items():
            if words in line and "supervise.py" not in line:
                os.kill(process, number)
                return f"{words} on {host}"
        return ""

    def _rank(self, number: int) -> str:
        host = self.chance.choice(self.hosts.names)
        for process in self.hosts.ranks(host)[:1]:
            os.kill(process, number)
            return f"rank on {host}"
        return ""

    def kill_a_rank(self) -> str:
        return self._rank(signal.SIGKILL)

    def kill_a_rank_while_saving(self) -> str:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if list((self.run / "checkpoints").glob(".partial-step_*/*")):
                return self._rank(signal.SIGKILL)
            time.sleep(0.002)
        return ""

    def kill_a_launcher(self) -> str:
        return self._kill(self.chance.choice(self.hosts.names), "deepspeed.launcher.launch")

    def kill_the_command(self) -> str:
        return self._kill(HEAD, "bin/deepspeed")

    def cut_a_link(self) -> str:
        host = self.chance.choice(self.hosts.names)
        self.hosts.cut(host)
        time.sleep(self.chance.uniform(5, 40))
        self.hosts.restore(host)
        return f"link of {host}"

    def end_the_ssh_sessions(self) -> str:
        host = self.chance.choice(self.hosts.names)
        self.hosts.stop_sshd(host)
        time.sleep(1)
        self.hosts.start_sshd(host)
        return f"sshd of {host}"

    def freeze_a_rank(self) -> str:
        return self._rank(signal.SIGSTOP)


def newest_step(run: Path) -> int:
    return max((line["step"] for line in metrics(run)), default=0)


def supervised(made: Hosts, launcher: Launcher, run: str) -> Launch:
    arguments = launcher.arguments("launch/pretrain.py", run, deepspeed_json(), FIELDS)
    deepspeed = ["deepspeed", f"--hostfile={made.hostfile()}", f"--master_port={free_port()}", "launch/pretrain.py"]
    command = ["python", "launch/supervise.py", "--wait", "1", "--failures", "12", "--", *deepspeed, *arguments]
    return launcher.start(made.command(command), run)


def test_a_run_that_is_disturbed_for_half_an_hour_learns_what_an_undisturbed_one_learns(
    launcher: Launcher, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {name.replace(".", "__"): value for name, value in FIELDS.items()}
    whole = launcher.torchrun("whole", deepspeed_json(), **fields)
    whole.succeed(timeout=60 * (3 * MINUTES + 10))

    chance, done, usage, latest = random.Random(SEED), Counter(), [], 0
    with hosts(tmp_path, workers(2)) as made:
        launch = supervised(made, launcher, "disturbed")
        disturber, began = Disturber(made, launch.run, chance), time.monotonic()
        output = keep_output(launch, tmp_path / "output")
        while launch.process.poll() is None:
            pause = time.monotonic() + chance.uniform(5, 45)
            # Now and then a start is disturbed; but a run that never gets to a step shows nothing.
            steps = chance.choice([0, 1, 1, 1])
            while launch.process.poll() is None and (
                time.monotonic() < pause
                or (steps and newest_step(launch.run) <= latest and pause + 200 > time.monotonic())
            ):
                time.sleep(0.5)
            for process, line in made.processes(HEAD).items():
                if "launch/supervise.py" in line and "python" in line.split()[0]:
                    supervisor = psutil.Process(process)
                    usage.append((supervisor.memory_info().rss / 2**20, supervisor.num_fds()))
            # Not after the last step: what freezes a rank that is on its way out is told to nobody.
            under_way = launch.process.poll() is None and newest_step(launch.run) < STEPS
            if time.monotonic() - began < 60 * MINUTES and under_way:
                kind = chance.choice(disturber.kinds)
                what = kind()
                done[kind.__name__] += bool(what)
                latest = newest_step(launch.run)
                print(f"{time.monotonic() - began:.0f} s, step {latest}: {kind.__name__} {what}", flush=True)
        output.join(30)
        seconds = time.monotonic() - began
        left = made.leftovers()
    told = (tmp_path / "output").read_text()
    assert launch.process.returncode == 0, told[-6000:]
    assert not left

    events = [json.loads(line) for line in (launch.run / "supervise.jsonl").read_text().splitlines()]
    ends = [event for event in events if event["event"] == "end" and event["reason"]]
    assert [m["step"] for m in metrics(launch.run)] == list(range(1, STEPS + 1))
    assert losses(launch.run) == losses(whole.run)
    last = f"checkpoints/step_{STEPS:08d}/weights.safetensors"
    ours, theirs = load_file(launch.run / last), load_file(whole.run / last)
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert not list(launch.run.rglob(".partial-*"))
    tenth = max(1, len(usage) // 10)
    grown = [max(u[i] for u in usage[-tenth:]) - max(u[i] for u in usage[tenth : 2 * tenth]) for i in (0, 1)]
    memory = [m["memory_gib"] for m in metrics(launch.run) if "memory_gib" in m]
    summary = {
        "minutes": round(seconds / 60, 1),
        "seed": SEED,
        "steps": STEPS,
        "disturbances": dict(done),
        "failures": len(ends),
        "lost_steps": sum(event.get("lost_steps", 0) for event in ends),
        "lost_seconds": round(sum(event.get("lost_seconds", 0.0) for event in ends)),
        "supervisor_mib": [round(usage[0][0], 1), round(usage[-1][0], 1)],
        "supervisor_files": [usage[0][1], usage[-1][1]],
        "rank_gib": [min(memory), max(memory)],
    }
    print(json.dumps(summary))
    assert sum(done.values()) >= MINUTES / 2
    assert grown[0] < 10 and grown[1] <= 2, usage


def keep_output(launch: Launch, path: Path) -> Thread:
    """Write the run's output to a file as it comes: a full pipe would stop the run."""

    def keep() -> None:
        assert launch.process.stdout is not None
        with path.open("w") as file:
            file.writelines(launch.process.stdout)

    thread = Thread(target=keep, daemon=True)
    thread.start()
    return thread
