"""How far something long is: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from simvtp_ds.evaluation.embed import OnProgress

EVERY = 5.0  # seconds between two lines


@contextmanager
def progress(what: str) -> Iterator[OnProgress]:
    """Yields a function to be told (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    if console.is_terminal:
        with Progress(
            TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        ) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    started = last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY:
            last = now
            left = (now - started) * (total - done) / max(done, 1)
            print(f"{what}: {done} of {total}, {left:.0f} s left", flush=True)

    yield line


@contextmanager
def silence(what: str) -> Iterator[OnProgress]:
    """The same for ranks that say nothing."""
    yield lambda done, total: None
