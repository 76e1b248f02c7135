"""Start a run again after a failure, until it is finished, asked to stop, or does not get on."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from simvtp_ds.engine.checkpoint import RECORD, steps_of
from simvtp_ds.engine.outcome import FINISHED, OUTCOME, REFUSED, STOPPED, read_outcome
from simvtp_ds.supervise.child import Child, adopt_orphans
from simvtp_ds.supervise.command import Command
from simvtp_ds.supervise.plan import NotEnoughHostsError, Start, newest_position, plan

DONE, GAVE_UP, MUST_CHANGE, COME_BACK = 0, 1, 2, 75  # exit codes; 75 is EX_TEMPFAIL of sysexits.h
LONGEST_WAIT = 600.0
ASKED = ("SIGTERM", "SIGUSR1")  # a person or a cluster asked a rank to stop; else its launcher was killed


@dataclass(frozen=True)
class Options:
    """How patient the supervisor is.

    Args:
        failures: Failures in a row without a new checkpoint after which it gives up.
        wait: Seconds before the next start; doubled with every failure without a new checkpoint, up to ten minutes.
        grace: Seconds that a run has to save and end when it is stopped.
        min_hosts: Fewest hosts to go on with; None: all of the hostfile.
    """

    failures: int = 5
    wait: float = 10.0
    grace: float = 120.0
    min_hosts: int | None = None


class Supervisor:
    """See the module; `run` does it."""

    def __init__(self, command: Command, options: Options) -> None:
        self.command, self.options = command, options
        self.run_folder = Path(command.config.run.dir)
        self.folder = self.run_folder / "supervise"
        self.stop = threading.Event()
        self.signal = ""

    def run(self) -> int:
        """Supervise to the end; the exit code.

        Raises:
            ValueError: the next start is impossible with these settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        adopt_orphans()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._remember)
        failures, at = 0, self._step()
        while True:
            try:
                start = plan(self.command, self.folder, self.options.min_hosts)
                outcome, reason = self._start(start)
            except NotEnoughHostsError as error:
                outcome, reason = None, str(error)
                self._tell("end", code=None, reason=reason, step=at, seconds=0.0)
            except ValueError as error:
                self._tell("refused", reason=str(error), step=at)
                raise
            if outcome == FINISHED:
                self._tell("finished", step=self._step())
                return DONE
            if outcome == REFUSED:
                self._tell("refused", reason=reason, step=self._step())
                return MUST_CHANGE
            if self.stop.is_set() or outcome == STOPPED:
                return self._stopped(reason)
            failures = 0 if self._step() > at else failures
            failures, at = failures + 1, self._step()
            if failures >= self.options.failures:
                self._tell("gave up", reason=f"{failures} failures without a new checkpoint", step=at)
                return GAVE_UP
            pause = min(LONGEST_WAIT, self.options.wait * 2 ** (failures - 1))
            if self.stop.wait(pause):
                return self._stopped(self.signal)

    def _start(self, start: Start) -> tuple[str | None, str]:
        """One start, to its end: outcome (None: it failed) and reason."""
        (self.run_folder / OUTCOME).unlink(missing_ok=True)
        began, clock, run = time.time(), time.monotonic(), self.command.config.run
        self._tell("start", ranks=start.ranks, dropped=list(start.dropped), changed=start.told, step=self._step())
        try:
            # A step is the longest that a run may be silent, and it says something every `log_every` of them.
            child = Child(start.words, self.options.grace, silence=(run.log_every + 2) * run.step_timeout)
        except OSError as error:
            raise ValueError(f"{start.words[0]} cannot be started: {error}") from error
        code = child.wait(self.stop.is_set)
        outcome, told = read_outcome(self.run_folder)
        if outcome is None and code == MUST_CHANGE:
            outcome = REFUSED
        if outcome == STOPPED and told not in ASKED and not self.stop.is_set():
            outcome, told = None, f"saved and ended because of {told}"
        reason = child.reason if outcome in (None, REFUSED) else ""
        reason = told or reason or (f"exit code {code} before the last step" if outcome is None else "")
        step = self._step()
        self._tell(
            "end",
            code=code,
            reason=reason,
            step=step,
            seconds=round(time.monotonic() - clock, 1),
            **({"lost_steps": max(0, self._last_logged() - step), "lost_seconds": self._lost(began)} if reason else {}),
        )
        return outcome, reason

    def _stopped(self, reason: str) -> int:
        self._tell("stopped", reason=self.signal or reason, step=self._step())
        return COME_BACK

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        self.stop.set()

    def _step(self) -> int:
        position = newest_position(self.command.config.run)
        return position["step"] if position else 0

    def _lost(self, began: float) -> float:
        """Seconds of the start that began at `began` that its checkpoints do not hold."""
        saved = began
        with contextlib.suppress(OSError, IndexError):
            saved = (steps_of(self.run_folder)[0] / RECORD).stat().st_mtime
        return round(time.time() - max(began, saved), 1)

    def _last_logged(self) -> int:
        """The last step in the metrics."""
        with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
            return json.loads((self.run_folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        return 0

    def _tell(self, event: str, **values: Any) -> None:
        """A line in supervise.jsonl, and one for people."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError), (self.run_folder / "supervise.jsonl").open("a") as file:  # a full disk
            file.write(json.dumps({"time": now, "event": event, **values}) + "\n")
        told = ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, "", []))
        with contextlib.suppress(OSError):
            print(f"supervise {now}: {event}{': ' if told else ''}{told}", flush=True)
