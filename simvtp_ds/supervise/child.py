"""One start of the command: its output passed on, its processes watched until the last one has ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LINES_KEPT = 400
LONGEST_REASON = 300


def adopt_orphans() -> None:
    """Processes whose parent dies below this one become its children (Linux), so that none is lost sight of."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_parent() -> None:
    """In the child: SIGTERM when the supervisor dies, as if a person had stopped the command."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def reason_in(lines: Sequence[str]) -> str:
    """The line of a failed run's output that says most: the run's own, the launcher's, Python's, the last."""
    lines = [line.strip() for line in lines if line.strip()]
    for pattern in (
        r"\berror on \S+: ",
        r"exits with return code = -?\d+",
        r"(^|[ .])\w+(Error|Exception): ",
        r"[Ee]rror: ",
    ):
        found = [line for line in lines if re.search(pattern, line)]
        if found:
            exit_code = re.search(r"exits with return code = (-?\d+)", found[-1])
            if exit_code is None:
                return found[-1][:LONGEST_REASON]
            code = int(exit_code[1])
            name = f" ({signal.Signals(-code).name})" if -code in set(signal.Signals) else ""
            return f"a process ended with code {code}{name}"
    return lines[-1][:LONGEST_REASON] if lines else "no output"


class Child:
    """A started command.

    Args:
        words: The command.
        grace: Seconds for its processes to save and end once they were asked to, or once the command itself has ended.
        silence: Seconds without a line of output after which it counts as hanging.
    """

    def __init__(self, words: Sequence[str], grace: float, silence: float) -> None:
        self.grace, self.silence = grace, silence
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        self.reason = ""
        self.last_line = time.monotonic()
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which passes it on once
            preexec_fn=_die_with_parent,
        )
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def _pass_on(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            self.last_line = time.monotonic()
            with contextlib.suppress(OSError, ValueError):  # nobody reads the supervisor's output any more
                sys.stdout.write(line)
                sys.stdout.flush()

    def wait(self, stopping: Callable[[], bool]) -> int:
        """Wait until the command and all that it has started have ended; its exit code, negative for a signal.

        `stopping`: whether it is to be stopped; asked again and again.
        """
        deadline, asked = float("inf"), False
        while True:
            now = time.monotonic()
            left = self._bury()
            code = self.process.poll()
            if code is None and not asked:
                if now - self.last_line > self.silence:
                    self.reason = f"no output for {self.silence:.0f} s, and no step: it hangs"
                if self.reason or stopping():
                    asked, deadline = True, now + self.grace
                    self.process.terminate()
            if code is not None:
                if not left:
                    break
                deadline = min(deadline, now + self.grace)
            if now > deadline:
                for process in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
            time.sleep(0.2)
        self._reader.join(5)
        if code and not self.reason:
            self.reason = reason_in(self.lines)
        return code

    def _bury(self) -> bool:
        """Bury the adopted dead, whose launcher waits for them; whether any child is left, the command included."""
        with contextlib.suppress(ChildProcessError):
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if dead.si_pid == self.process.pid:
                    break  # its exit code is for `poll`
                os.waitpid(dead.si_pid, 0)
            return True
        return False
