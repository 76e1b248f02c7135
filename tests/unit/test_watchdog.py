"""What a rank says about the others, and how a frozen process is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from simvtp_ds.engine import guardian
from simvtp_ds.engine.watchdog import FOLLOWED, describe, of_a_collective


def said(rank: int, **values: Any) -> dict[str, Any]:
    return {"host": f"worker-{rank + 1}", "beat": 7, "marks": 30, "at": "the end of step 4", "end": "", **values}


def test_nobody_is_blamed_when_all_ranks_are_in_the_same_step() -> None:
    assert describe(0, [said(r) for r in range(3)], [said(r, beat=9) for r in range(3)]) == []


@pytest.mark.parametrize(
    ("before", "now", "blame"),
    [
        ({}, {}, "rank 1 never came"),
        (said(1), said(1), "rank 1 on worker-2 shows no sign of life since the end of step 4"),
        (said(1), said(1, beat=9, end="ended: disk full"), "rank 1 on worker-2 ended: disk full"),
        (
            said(1, marks=29, at="the data of step 3"),
            said(1, beat=9, marks=29, at="the data of step 3"),
            "rank 1 on worker-2 is still at the data of step 3",
        ),
    ],
)
def test_the_rank_that_holds_the_others_up_is_named(before: dict, now: dict, blame: str) -> None:
    rest = [said(0, beat=9), said(2, beat=9)]
    assert describe(0, [said(0), before, said(2)], [rest[0], now, rest[1]]) == [blame]


def test_a_rank_that_ended_because_of_another_is_not_blamed() -> None:
    now = [said(0, beat=9), said(1), said(2, end=FOLLOWED)]
    assert describe(0, [said(r) for r in range(3)], now) == [
        "rank 1 on worker-2 shows no sign of life since the end of step 4"
    ]


def test_the_silent_are_named_before_those_who_ended_and_those_behind() -> None:
    before = [said(r) for r in range(4)]
    now = [said(0, beat=9), said(1, beat=9, marks=29), said(2, beat=9, end="ended: x"), said(3)]
    assert [line[:6] for line in describe(0, before, now)] == ["rank 3", "rank 2", "rank 1"]


def test_errors_of_gloo_and_of_the_store_are_told_from_mistakes() -> None:
    import torch.distributed as dist

    gloo = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]:1")
    assert of_a_collective(gloo) and of_a_collective(dist.DistStoreError("no answer"))
    assert not of_a_collective(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) and not of_a_collective(
        ValueError("gloo")
    )


PARENT = f"""
import subprocess, sys, time
guardian = subprocess.Popen([sys.executable, "-I", "-S", {guardian.__file__!r}, "worker-2: rank 1", "2"],
                            stdin=subprocess.PIPE)
while True:
    guardian.stdin.write(b"the data of step 3\\n")
    guardian.stdin.flush()
    print("alive", flush=True)
    time.sleep(0.5)
"""


def test_a_stopped_process_is_ended_and_named_and_its_guardian_goes_with_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stderr is not None
    for _ in range(3):
        assert parent.stdout.readline() == "alive\n"
    os.kill(parent.pid, signal.SIGSTOP)
    began = time.monotonic()
    assert parent.wait(30) in (-signal.SIGKILL, -signal.SIGUSR2)
    assert time.monotonic() - began > 1.5
    assert "error on worker-2: rank 1: frozen for 2 s" in (told := parent.stderr.read())  # read to the guardian's end
    assert "at the data of step 3" in told


def test_a_stopped_process_is_ended_though_nobody_reads_why() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stderr is not None
    assert parent.stdout.readline() == "alive\n"
    parent.stderr.close()  # as the end of the deepspeed command does
    os.kill(parent.pid, signal.SIGSTOP)
    assert parent.wait(30) in (-signal.SIGKILL, -signal.SIGUSR2)
