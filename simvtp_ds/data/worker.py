"""Decoder processes: a decoder that hangs or crashes costs one clip, not the run.

Each process decodes one clip at a time straight into shared memory. The parent watches a deadline for each, kills what
hangs and starts another. Processes start by `spawn` (no copy of CUDA or of locks) and import no torch.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple, Self

import cv2
import numpy as np

from simvtp_ds.data.decode import Source, decode_into
from simvtp_ds.data.sampling import View

START_TIMEOUT = 120.0  # seconds a process may take to import PyAV and OpenCV; shared file systems are slow at first
START_FAILURES = 3  # starts that may fail in a row, a process asked for: memory may have been short for a moment
PR_SET_PDEATHSIG = 1


class Task(NamedTuple):
    """One clip to decode and where it goes."""

    slot: int
    position: int
    source: Source
    view: View


class Outcome(NamedTuple):
    """What became of a task; `error` is None when its frames are in place."""

    task: Task
    error: str | None


def serve(connection: Connection, memory: Any, shape: tuple[int, ...], parent: int) -> None:
    """A decoder process: reports that it is up, then answers each Task with None or the reason it failed."""
    if sys.platform == "linux":
        # Dies with the thread that started it, also when that is killed and cannot say goodbye.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # the parent was gone before the line above took effect
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends us
    cv2.setNumThreads(1)
    frames = np.frombuffer(memory, dtype=np.uint8).reshape(shape)
    connection.send(None)
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        connection.send(_failure(frames[task.slot, task.position], task))


def _failure(out: np.ndarray, task: Task) -> str | None:
    """Decodes into `out`; a clip must never end the process, whatever is wrong with it."""
    try:
        decode_into(out, task.source, task.view)
    except Exception as error:
        return str(error) or repr(error)
    return None


class _Worker:
    """One process as its parent sees it."""

    def __init__(self, memory: Any, shape: tuple[int, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=serve, args=(child, memory, shape, os.getpid()), name="simvtp-decoder", daemon=True
        )
        self.process.start()
        child.close()
        self.ready = False
        self.task: Task | None = None
        self.deadline = time.monotonic() + START_TIMEOUT

    def end(self) -> int | None:
        """Kills the process and returns its exit code; None if the kernel has not let go of it yet."""
        self.process.kill()
        self.process.join(5)
        self.connection.close()
        return self.process.exitcode


class Pool:
    """Decoder processes around a block of shared memory.

    To be made, used and closed by one thread: the processes end with the thread that started them.

    Args:
        workers: Processes.
        shape: Shape of `frames`: (slots, B, T, H, W, 3).
        timeout: Seconds a clip may take (data.decode_timeout).
    """

    def __init__(self, workers: int, shape: tuple[int, ...], timeout: float) -> None:
        # An unlinked file in /dev/shm (or, where that is too small, in the temporary folder): nothing stays behind.
        self._memory: Any = multiprocessing.get_context("spawn").RawArray(ctypes.c_uint8, int(np.prod(shape)))
        self._shape = shape
        self._timeout = timeout
        self._failed_starts = 0
        self._waiting: deque[Task] = deque()
        self._workers: list[_Worker] = []
        self.frames = np.frombuffer(self._memory, dtype=np.uint8).reshape(shape)
        try:
            for _ in range(workers):
                self._workers.append(_Worker(self._memory, shape))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, tasks: Sequence[Task]) -> None:
        """Appends tasks to the queue."""
        self._waiting.extend(tasks)

    def submit_first(self, task: Task) -> None:
        """Puts a task before all others: a replacement, for which an older batch waits."""
        self._waiting.appendleft(task)

    def poll(self, wake: Connection) -> list[Outcome]:
        """Waits until a task ends, a deadline passes or `wake` has something to read; what ended since the last call.

        Raises:
            RuntimeError: Processes do not start.
        """
        self._dispatch()
        deadlines = [worker.deadline for worker in self._workers if worker.task or not worker.ready]
        patience = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        readable = set(wait([wake, *(worker.connection for worker in self._workers)], patience))
        outcomes = [self._check(number, worker.connection in readable) for number, worker in enumerate(self._workers)]
        return [outcome for outcome in outcomes if outcome]

    def close(self) -> None:
        """Kills every process by its id and collects it."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _dispatch(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.task is None and self._waiting:
                worker.task = self._waiting.popleft()
                worker.deadline = time.monotonic() + self._timeout
                with suppress(OSError):  # it died idle: its connection reads as ended, so the next check replaces it
                    worker.connection.send(worker.task)

    def _check(self, number: int, readable: bool) -> Outcome | None:
        """Takes the answer of a process, or replaces one that died or is late."""
        worker = self._workers[number]
        if readable:
            try:
                error: str | None = worker.connection.recv()
            except (EOFError, OSError):
                return self._replace(number, "the decoder process ended with exit code {code}")
            task, worker.task = worker.task, None
            worker.ready, self._failed_starts = True, 0
            return Outcome(task, error) if task else None
        if (worker.task or not worker.ready) and time.monotonic() > worker.deadline:
            return self._replace(number, f"not decoded after {self._timeout:g} s (data.decode_timeout), decoder killed")
        return None

    def _replace(self, number: int, reason: str) -> Outcome | None:
        worker = self._workers[number]
        code = worker.end()
        self._failed_starts += not worker.ready
        if self._failed_starts > START_FAILURES * len(self._workers):
            raise RuntimeError(
                f"no decoder process starts (exit code {code}, limit {START_TIMEOUT:g} s), see its own message above: "
                "check that av and cv2 can be imported, and the launch script too without running anything"
            )
        self._workers[number] = _Worker(self._memory, self._shape)
        if worker.task is None:
            return None
        return Outcome(worker.task, f"{worker.task.source.uri}: {reason.format(code=code)}")
