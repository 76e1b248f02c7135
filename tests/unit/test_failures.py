"""When skipped steps end a run, and what a broken pipe does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from simvtp_ds.engine.failures import (
    SkippedSteps,
    StopRequest,
    TrainingError,
    not_finite,
    parent_of,
    started_by_deepspeed,
)
from simvtp_ds.types import Losses


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    """StopRequest takes signals over; pytest needs them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_skipped_steps_in_a_row_end_the_run_and_an_applied_one_resets_the_count() -> None:
    skipped = SkippedSteps(limit=3)
    for step in (1, 2):
        skipped.skipped(step, "why", counts=True)
    skipped.applied()
    for step in (4, 5):
        skipped.skipped(step, "why", counts=True)
    with pytest.raises(TrainingError, match=r"step 6: 3 skipped steps in a row \(why\)"):
        skipped.skipped(6, "why", counts=True)
    assert skipped.total == 5


def test_overflows_that_a_smaller_scale_mends_do_not_end_the_run() -> None:
    skipped = SkippedSteps(limit=2)
    for step in range(20):
        skipped.skipped(step, "overflow", counts=False)
    assert skipped.in_a_row == 0


def test_parts_that_are_not_finite_are_named() -> None:
    fine = torch.zeros(())
    losses = [Losses(fine, fine, fine * torch.nan, fine, fine), Losses(fine, fine, fine, fine, fine / 0)]
    assert not_finite(losses) == ["mlm", "vtm"]


@pytest.mark.parametrize("way", ["keep_output_writable(); print('lost', flush=True)", "print_line('lost')"])
def test_output_whose_reader_has_gone_is_sent_nowhere(way: str) -> None:
    script = (
        "import sys\n"
        "from simvtp_ds.engine.failures import keep_output_writable, print_line\n"
        "sys.stdin.readline()\n"
        f"{way}\n"
        "sys.exit(7)\n"  # which flushes stdout once more
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.close()
    assert process.wait(60) == 7


def test_a_process_under_another_parent_is_not_taken_for_one_of_deepspeeds() -> None:
    assert not started_by_deepspeed(os.getppid())
    assert parent_of(os.getpid()) == os.getppid()
    assert parent_of(2**30) == 0
    assert StopRequest().pending() == ""


def test_a_signal_is_remembered_by_name() -> None:
    request = StopRequest()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert request.pending() == "SIGUSR1"
