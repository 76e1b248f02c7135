"""Child processes that may hang or die: each costs its own task, is killed by its id and replaced.

Processes start by `spawn` (no copy of CUDA or of locks). This module imports nothing heavy, so that what a child loads
is decided by the task alone.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Generic, NamedTuple, Self, TypeVar

START_TIMEOUT = 120.0  # seconds a process may take for its imports; shared file systems are slow at first
START_FAILURES = 3  # starts that may fail in a row, a process asked for: memory may have been short for a moment
LONGEST_WAIT = 3600.0  # seconds of one poll; the kernel's limit lies at 24 days
PR_SET_PDEATHSIG = 1

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Hung:
    """The task took longer than `seconds`; its process was killed."""

    seconds: float


@dataclass(frozen=True)
class Crashed:
    """The process ended at the task. `exit_code`: -n for signal n; None if the kernel has not let go of it yet."""

    exit_code: int | None


class Outcome(NamedTuple, Generic[T, R]):
    """What became of a task: its result, or why there is none."""

    task: T
    result: R | Hung | Crashed


def serve(connection: Connection, parent: int, start: Callable[[], Callable[[T], R]]) -> None:
    """A child process: gets ready, says so, then answers one task after another."""
    if sys.platform == "linux":
        # Dies with the thread that started it, also when that is killed and cannot say goodbye.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # the parent was gone before the line above took effect
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends us
    work = start()
    connection.send(None)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(work(task))


class _Worker(Generic[T]):
    """One process as its parent sees it. `deadline` is infinite while it has nothing to do."""

    def __init__(self, name: str, start: Callable[[], Callable[[T], object]]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=serve, args=(child, os.getpid(), start), name=f"simvtp-{name}", daemon=True
        )
        self.process.start()
        child.close()
        self.ready = False
        self.task: T | None = None
        self.deadline = time.monotonic() + START_TIMEOUT

    def take(self, task: T, timeout: float) -> None:
        self.task, self.deadline = task, time.monotonic() + timeout
        with suppress(OSError):  # it died idle: its connection reads as ended, so the next check replaces it
            self.connection.send(task)

    def end(self, grace: float = 0.0) -> int | None:
        """Kills the process, once `grace` seconds are over, and returns its exit code (None: it is still there)."""
        if grace:
            self.process.join(grace)
        self.process.kill()
        self.process.join(5)
        self.connection.close()
        return self.process.exitcode


class Pool(Generic[T, R]):
    """Processes that work on one task at a time each.

    To be made, used and closed by one thread: the processes end with the thread that started them.

    Args:
        name: What a process is called in messages.
        workers: Processes.
        start: Called once in each process; returns the function from task to result. It, the tasks (not None) and the
            results must pickle; results are small. A function that raises ends its process: that task has crashed.
        timeout: Seconds a task may take.
        needs: Modules that `start` imports, for the message when no process starts.
    """

    def __init__(
        self, name: str, workers: int, start: Callable[[], Callable[[T], R]], timeout: float, needs: str
    ) -> None:
        self._name, self._start, self._timeout, self._needs = name, start, timeout, needs
        self._failed_starts = 0
        self._waiting: deque[T] = deque()
        self._workers: list[_Worker[T]] = []
        try:
            for _ in range(workers):
                self._workers.append(_Worker(name, start))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, tasks: Iterable[T]) -> None:
        """Appends tasks to the queue."""
        self._waiting.extend(tasks)

    def submit_first(self, task: T) -> None:
        """Puts a task before all others."""
        self._waiting.appendleft(task)

    def limit(self, task: T) -> float:
        """Seconds that the task may take."""
        return self._timeout

    @property
    def idle(self) -> int:
        """Tasks that could be submitted and would not wait."""
        return sum(worker.ready and worker.task is None for worker in self._workers) - len(self._waiting)

    def poll(self, *wakes: Connection, patience: float = LONGEST_WAIT) -> list[Outcome[T, R]]:
        """What ended since the last call.

        Waits for a task to end, a process to change, one of `wakes` to have something to read, at most `patience` s.

        Raises:
            RuntimeError: Processes do not start.
        """
        for worker in self._workers:
            if worker.ready and worker.task is None and self._waiting:
                task = self._waiting.popleft()
                worker.take(task, self.limit(task))
        deadline = min(worker.deadline for worker in self._workers) - time.monotonic()
        sources = [*(worker.connection for worker in self._workers), *wakes]
        readable = set(wait(sources, min(max(0.0, deadline), patience)))
        outcomes = [self._check(number, worker.connection in readable) for number, worker in enumerate(self._workers)]
        return [outcome for outcome in outcomes if outcome]

    def drain(self) -> Iterator[Outcome[T, R]]:
        """Outcomes as tasks end, in no fixed order, until none is left; more may be submitted meanwhile."""
        while self._waiting or any(worker.task is not None for worker in self._workers):
            yield from self.poll()

    def close(self) -> None:
        """Kills every process by its id and collects it."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _check(self, number: int, readable: bool) -> Outcome[T, R] | None:
        """Takes the answer of a process, or replaces one that died or is late."""
        worker = self._workers[number]
        task = worker.task
        if readable:
            try:
                result: R = worker.connection.recv()
            except (EOFError, OSError):
                # An exception closes the connection first and ends the process a moment later: its code says more.
                code = self._replace(number, grace=1.0)
                return None if task is None else Outcome(task, Crashed(code))
            worker.ready, worker.task, worker.deadline, self._failed_starts = True, None, float("inf"), 0
            return None if task is None else Outcome(task, result)
        if time.monotonic() > worker.deadline:
            self._replace(number)
            return None if task is None else Outcome(task, Hung(self.limit(task)))
        return None

    def _replace(self, number: int, grace: float = 0.0) -> int | None:
        """Puts a new process in the place of one that it ends; the old one's exit code."""
        worker = self._workers[number]
        code = worker.end(grace)
        self._failed_starts += not worker.ready
        if self._failed_starts > START_FAILURES * len(self._workers):
            raise RuntimeError(
                f"no {self._name} process starts (exit code {code}, limit {START_TIMEOUT:g} s), see its own message "
                f"above: check that {self._needs} can be imported, and the launch script too without running anything"
            )
        self._workers[number] = _Worker(self._name, self._start)
        return code
