"""How far something long is: a bar with rate and time left on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

EVERY = 5.0  # seconds between two lines

OnProgress: TypeAlias = Callable[[int, int], None]  # (done, total)
Show: TypeAlias = Callable[[str, str], AbstractContextManager[OnProgress]]  # `progress` or `silence`


@contextmanager
def progress(doing: str, things: str) -> Iterator[OnProgress]:
    """Yields the function to be told; the messages read "probing: 10 of 20 files, 3.1 files/s, 3 s left"."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            return Text(f"{task.speed or 0:.1f} {things}/s")

    started = last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if total and (done in (0, total) or now - last >= EVERY):
            last = now
            rate = done / max(now - started, 1e-9)
            left = f", {(total - done) / rate:.0f} s left" if done else ""
            print(f"{doing}: {done} of {total} {things}, {rate:.1f} {things}/s{left}", flush=True)

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield line
        return
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def silence(_doing: str, _things: str) -> Iterator[OnProgress]:
    """The same for ranks that say nothing."""
    yield lambda done, total: None
