"""Ends a rank that is frozen: stopped by a signal, or held up where no Python runs. A program of its own, a few MiB.

    python guardian.py WHO LIMIT     WHO as in its message, LIMIT in seconds; its parent is the rank

The rank writes a line about itself every second. Without one for LIMIT seconds it is ended with SIGKILL, which ends
even a stopped process; nothing inside the rank could do that. When the rank has ended, so does the guardian.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys


def main(who: str, limit: int) -> None:
    """Read what the rank says until it has ended or said nothing for too long."""
    rank = os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the rank, which may take its time to save
    last, silent = "its start", 0
    while silent < limit:
        # Seconds are counted, not read from a clock: a job that was suspended as a whole was not silent.
        ready, _, _ = select.select([0], [], [], 1.0)
        if not ready:
            silent += 1
            continue
        text = os.read(0, 65536)
        if not text:
            return
        last, silent = text.decode(errors="replace").splitlines()[-1], 0
    if os.getppid() != rank:
        return
    reason = f"frozen for {limit} s (stopped, or waiting for a device or a file) at {last}; ended it"
    with contextlib.suppress(OSError):  # whoever read it may be gone, with the deepspeed command
        print(f"error on {who}: {reason}", file=sys.stderr, flush=True)
    for number in (signal.SIGUSR2, signal.SIGKILL):  # the first writes the stack of every thread into the rank's log
        os.kill(rank, number)
        select.select([0], [], [], 1.0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
