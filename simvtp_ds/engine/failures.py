"""What ends a run: signals that ask it to stop, losses that are not finite."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

from simvtp_ds.types import AnyLosses


class TrainingError(RuntimeError):
    """The run cannot go on; the newest checkpoint is intact. The message is one line for a person."""


def parent_of(process: int) -> int:
    """Id of a process's parent; 0 where it cannot be known (the process is gone, or this is not Linux)."""
    try:
        # The second field is the name in parentheses and may hold anything; the parent is the second one after it.
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def started_by_deepspeed(process: int) -> bool:
    """Whether a process is DeepSpeed's per-host launcher."""
    try:
        return "deepspeed.launcher.launch" in Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return False


class StopRequest:
    """Remembers SIGTERM and SIGUSR1 until the step in progress is done, and notices when nobody waits for the run.

    The deepspeed command starts a launcher, which starts the ranks. Killed, the command takes neither with it: the run
    would go on unseen. So that launcher losing the parent that it had counts as a request, too; on another host that is
    the end of the ssh connection. (Not so other parents: a run under nohup outlives the shell that started it.)
    """

    def __init__(self) -> None:
        self.reason = ""
        self._launcher = os.getppid()
        self._starter = parent_of(self._launcher) if started_by_deepspeed(self._launcher) else 0
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    def pending(self) -> str:
        """Why the run should stop; empty: it should not."""
        if not self.reason and self._starter > 1 and parent_of(self._launcher) != self._starter:
            self.reason = "the end of the process that started the launcher"
        return self.reason


def print_line(line: str) -> None:
    """A line on stdout. Whoever read it may be gone (the deepspeed command, a terminal): no reason to end otherwise."""
    try:
        print(line, flush=True)
    except OSError:
        keep_output_writable()


def keep_output_writable() -> None:
    """Send output nowhere if its reader has gone: the deepspeed runner dies before its ranks have saved, and a print
    into its broken pipe would end the rank in the middle of the save."""
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError):
            continue
        poll = select.poll()
        poll.register(descriptor, select.POLLERR)
        if any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


class SkippedSteps:
    """Counts skipped steps in a row that will not mend by themselves."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_a_row = 0
        self.total = 0

    def applied(self) -> None:
        """A step was applied."""
        self.in_a_row = 0

    def skipped(self, step: int, reason: str, counts: bool) -> None:
        """A step was skipped.

        Args:
            step: The global step.
            reason: Why, for the error.
            counts: False for an fp16 overflow that a smaller loss scale will mend.

        Raises:
            TrainingError: `limit` such steps came in a row.
        """
        self.total += 1
        self.in_a_row = self.in_a_row + 1 if counts else 0
        if self.in_a_row >= self.limit:
            raise TrainingError(
                f"step {step}: {self.in_a_row} skipped steps in a row ({reason}). Lower the learning rate in the "
                "DeepSpeed JSON or look at the data of these steps, then go on with --resume auto; "
                "run.max_skipped is the limit"
            )


def not_finite(losses: Iterable[AnyLosses]) -> list[str]:
    """Names of the parts that are not finite in these micro batches; waits for the device."""
    return sorted({name for loss in losses for name in loss._fields[1:] if not getattr(loss, name).isfinite()})
