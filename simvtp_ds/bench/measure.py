"""Time and processor time of readers, one process and many, alternating so that a busy machine slows all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing import active_children
from typing import NamedTuple

import numpy as np

from simvtp_ds.bench.cases import BenchError, Case, FileSet
from simvtp_ds.bench.readers import OURS, Reader, open_reader
from simvtp_ds.data.pool import Crashed, Hung, Pool
from simvtp_ds.data.worker import DecoderPool, Task

TIMEOUT = 300.0  # seconds of a clip
SLACK = 0.2  # levels by which another frame may seem nearer than the right one: noise where nothing moves


class Timing(NamedTuple):
    """What some clips took. `cpu`: processor seconds, user and system, of all threads and processes at work."""

    clips: int
    seconds: float
    cpu: float


class Agreement(NamedTuple):
    """How a reader's pictures compare with ours: mean difference in levels, share of frames that are the right ones."""

    mean_difference: float
    right_frames: float


def agreement(read: Reader, cases: Sequence[Case], ours: Reader) -> Agreement | None:
    """None for a reader that makes no pictures.

    A frame is right when ours of that number is nearer to it than the frames beside it are.
    """
    differences: list[float] = []
    right = total = 0
    for case in cases:
        pictures = read(case)
        if pictures is None:
            continue  # warmed up all the same
        beside = []
        for step in (0, -1, 1):
            indices = np.clip(case.view.indices + step, 0, case.clip.frames - 1)
            near = ours(case._replace(view=case.view._replace(indices=indices)))
            assert near is not None
            beside.append(np.abs(pictures.astype(np.int16) - near).mean(axis=(1, 2, 3)))
        differences += beside[0].tolist()
        right += int((beside[0] <= np.minimum(beside[1], beside[2]) + SLACK).sum())
        total += len(pictures)
    return Agreement(float(np.mean(differences)), right / total) if total else None


def one_worker(readers: dict[str, Reader], cases: Sequence[Case], round_number: int) -> dict[str, Timing]:
    """Each clip by each reader in turn; whose turn is first changes from clip to clip."""
    names = list(readers)
    total = {name: Timing(0, 0.0, 0.0) for name in names}
    for place, case in enumerate(cases, round_number):
        for name in names[place % len(names) :] + names[: place % len(names)]:
            wall, cpu = time.perf_counter(), time.process_time()
            readers[name](case)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            before = total[name]
            total[name] = Timing(before.clips + 1, before.seconds + wall, before.cpu + cpu)
    return total


class Crowd:
    """`workers` processes a reader, all started; those of ours are the loader's own."""

    def __init__(self, names: Sequence[str], workers: int, size: int, num_frames: int) -> None:
        self._workers, self._stack = workers, ExitStack()
        self._pools: dict[str, Pool] = {}
        for name in names:
            if name == OURS:
                pool = DecoderPool(workers, (1, workers, num_frames, size, size, 3), TIMEOUT)
            else:
                pool = Pool("bench", workers, partial(_start, name, size), TIMEOUT, needs=name)
            self._pools[name] = self._stack.enter_context(pool)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def time(self, name: str, files: FileSet, rounds: int) -> Timing:
        """All clips of a set `rounds` times by all processes of a reader.

        Raises:
            BenchError: A clip fails.
        """
        cases = files.cases * rounds
        tasks = [Task(0, place % self._workers, case.clip.source, case.view) for place, case in enumerate(cases)]
        pool = self._pools[name]
        wall, cpu = time.perf_counter(), _children_cpu()
        pool.submit(tasks if name == OURS else cases)
        for outcome in pool.drain():
            if isinstance(outcome.result, Hung | Crashed | str):
                raise BenchError(f"{name}, {files.name}: a clip failed with many workers: {outcome.result}")
        return Timing(len(cases), time.perf_counter() - wall, _children_cpu() - cpu)


def _start(name: str, size: int) -> Callable[[Case], str | None]:
    """In a process: reads a clip and drops it."""
    read = open_reader(name, size)

    def work(case: Case) -> str | None:
        try:
            read(case)
        except Exception as error:
            return str(error) or repr(error)
        return None

    return work


def _children_cpu() -> float:
    """Processor seconds of all child processes so far; idle ones add nothing."""
    # The kernel's clock of a process: ~pid << 3 with CPUCLOCK_SCHED (2), as clock_getcpuclockid() makes it.
    return sum(time.clock_gettime((~child.pid << 3) | 2) for child in active_children() if child.pid)
