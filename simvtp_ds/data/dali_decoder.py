"""DALI pipelines and worker processes that share the decoding of a rank's clips.

Whoever decodes a clip, it shows the same frames and the same box, and its pixels are equal within 2 levels; so which
of the two it was changes neither the order of the batches nor which clips are replaced: a clip that DALI cannot
decode goes to the worker processes, which decode it or say what is wrong with it.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from typing import Self

import torch
from torch import Tensor

from simvtp_ds.data.augment import Augmentation
from simvtp_ds.data.dali_clips import ClipPipeline
from simvtp_ds.data.dali_graph import CODECS
from simvtp_ds.data.pool import LONGEST_WAIT, Outcome
from simvtp_ds.data.worker import Decoded, DecoderPool, Task
from simvtp_ds.data_config import DataConfig

PIPELINES = 4  # one keeps about one decoding engine of a GPU busy: a V100 has 1, an A100 5, an H100 7
GROUP = 4  # most clips of a run; a broken one makes the worker processes decode its neighbours again
GIVE_UP = 3  # failed runs of a codec none of which ever worked: a GPU lacks AV1, say, and each costs a new pipeline
JOIN_TIMEOUT = 10.0  # seconds that a run may still take when all is closed


class _Lane:
    """A pipeline's thread as the decoder sees it. `deadline` is infinite while it has nothing to do."""

    def __init__(self) -> None:
        self.group: list[Task] = []
        self.deadline = float("inf")
        self.lost = False  # it hangs: what it may still decode is wanted no more


class DaliDecoder:
    """A `Decoder` (data/backend.py) whose clips lie on `device`. To be made, used and closed by one thread.

    A run that takes longer than its clips may (data.decode_timeout each) cannot be ended inside this process: its
    thread is left behind and its clips go to the worker processes, as all do once no thread is left.

    Args:
        data: Settings of the clips.
        shape: (slots, B, T, H, W, 3).
        device: The GPU; or the CPU, where DALI decodes little (for tests).
    """

    def __init__(self, data: DataConfig, shape: tuple[int, ...], device: torch.device) -> None:
        self._data, self._shape, self._device = data, shape, device
        self._codecs = set(CODECS["gpu" if device.type == "cuda" else "cpu"])
        self._proven: set[str] = set()  # codecs of runs that worked
        self._failures: Counter[str] = Counter()  # failed runs of the others
        # Not the training's stream: the copies of the workers' clips would wait for its kernels.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._slots: dict[int, Tensor] = {}
        # Guards what the threads share, from here on, and keeps the clips of a lost one out of the slots.
        self._changed = threading.Condition()
        self._waiting: deque[Task] = deque()
        self._ended: list[Decoded] = []
        self._refused: list[Task] = []  # by DALI; for the worker processes
        self._error: BaseException | None = None
        self._stop = self._warned = False
        self._wake_reader, self._wake_writer = multiprocessing.Pipe(duplex=False)
        self._pool = DecoderPool(data.workers, shape, data.decode_timeout, data.storage)
        self._lanes = [_Lane() for _ in range(PIPELINES)]
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name="simvtp-dali", daemon=True) for lane in self._lanes
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads and the worker processes."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        until = time.monotonic() + JOIN_TIMEOUT
        for lane, thread in zip(self._lanes, self._threads, strict=True):
            if not lane.lost:
                thread.join(max(0.0, until - time.monotonic()))
        self._pool.close()

    def submit(self, tasks: Iterable[Task]) -> None:
        """Appends tasks to the queues."""
        for task in tasks:
            if self._suits_dali(task):
                with self._changed:
                    self._waiting.append(task)
                    self._changed.notify()
            else:
                self._pool.submit([task])

    def submit_first(self, task: Task) -> None:
        """Puts a task before all others of its queue."""
        if self._suits_dali(task):
            with self._changed:
                self._waiting.appendleft(task)
                self._changed.notify()
        else:
            self._pool.submit_first(task)

    def poll(self, wake: Connection, /) -> list[Decoded]:
        """Waits until a task ends, something changes, or `wake` can be read; what ended since the last call.

        Raises:
            RuntimeError: Worker processes do not start, or DALI does not.
        """
        with self._changed:
            self._give_up_late_lanes()
            idle = self._pool.idle if self._data.host_share == "auto" else 0
            all_lost = all(lane.lost for lane in self._lanes)
            while self._waiting and (idle > 0 or all_lost):
                self._pool.submit([self._waiting.popleft()])
                idle -= 1
            while self._refused:
                self._pool.submit_first(self._refused.pop())
            patience = min(lane.deadline for lane in self._lanes) - time.monotonic()
        outcomes = self._pool.poll(wake, self._wake_reader, patience=min(max(0.0, patience), LONGEST_WAIT))
        while self._wake_reader.poll():
            self._wake_reader.recv_bytes()
        with self._changed:
            if self._error is not None:
                raise RuntimeError(
                    f"DALI cannot decode on {self._device} ({self._error}): set data.backend to cpu to train without it"
                ) from self._error
            for outcome in outcomes:
                if outcome.result is None:
                    self._copy_from_host(outcome.task)
            outcomes += self._ended
            self._ended.clear()
        return outcomes

    def take(self, slot: int) -> Tensor:
        """The clips of a slot without tasks, uint8 [B, T, H, W, 3] on the device."""
        with self._changed:
            return self._slots.pop(slot)

    def _suits_dali(self, task: Task) -> bool:
        """Whether DALI can decode it, and data.host_share leaves it to DALI: by lot, the same in every run."""
        if task.codec not in self._codecs or task.view.augmentation != Augmentation():
            return False
        if self._data.host_share == "auto":
            return True
        lot = hashlib.blake2b(f"{task.source} {task.view.indices[0]}".encode(), digest_size=8).digest()
        return int.from_bytes(lot, "little") >= self._data.host_share * 2**64

    def _place(self, task: Task) -> Tensor:
        """Where a clip goes: uint8 [T, H, W, 3]."""
        if task.slot not in self._slots:
            with torch.cuda.stream(self._stream) if self._stream else nullcontext():
                self._slots[task.slot] = torch.empty(self._shape[1:], dtype=torch.uint8, device=self._device)
        return self._slots[task.slot][task.position]

    def _copy_from_host(self, task: Task) -> None:
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            self._place(task).copy_(torch.from_numpy(self._pool.frames[task.slot, task.position]))
        if self._stream:
            self._stream.synchronize()

    def _give_up_late_lanes(self) -> None:
        for lane in self._lanes:
            if time.monotonic() > lane.deadline:
                lane.lost, lane.deadline = True, float("inf")
                self._pool.submit(lane.group)
                warnings.warn(f"a DALI run hangs, its clips go to worker processes: {_names(lane.group)}", stacklevel=2)

    def _serve(self, lane: _Lane) -> None:
        """A thread: one group after another, until all is closed."""
        try:
            size = (self._shape[3], self._shape[4])
            pipeline = ClipPipeline(self._device, GROUP, size, self._data.storage)
            while group := self._next_group(lane):
                try:
                    clips, reason = pipeline.decode(group), ""
                except Exception as error:
                    clips, reason = None, _short(error)
                with self._changed:
                    if lane.lost or self._stop:
                        return
                    if clips is not None:
                        pipeline.deliver(clips, [self._place(task) for task in group])
                        self._ended.extend(Outcome(task, None) for task in group)
                    else:
                        self._refused += group
                        self._doubt({task.codec for task in group} - self._proven)
                        self._warn_once(group, reason)
                    lane.group, lane.deadline = [], float("inf")
                    self._wake_writer.send_bytes(b".")
        except BaseException as error:
            with self._changed:
                self._error = error
                self._wake_writer.send_bytes(b".")

    def _next_group(self, lane: _Lane) -> list[Task]:
        """Waits for tasks and takes as many as leave some for the other threads; none when all is closed."""
        with self._changed:
            while not self._stop and not self._waiting:
                self._changed.wait()
            if self._stop:
                return []
            count = min(GROUP, math.ceil(len(self._waiting) / len(self._lanes)))
            lane.group = [self._waiting.popleft() for _ in range(count)]
            lane.deadline = time.monotonic() + sum(self._pool.limit(task) for task in lane.group)
            self._wake_writer.send_bytes(b".")  # poll waits no longer than until the deadline
            return lane.group

    def _doubt(self, codecs: set[str]) -> None:
        """Leaves a codec that never worked to the worker processes."""
        self._failures.update(codecs)
        self._codecs -= {codec for codec in codecs if self._failures[codec] >= GIVE_UP}

    def _warn_once(self, group: list[Task], reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"DALI did not decode {_names(group)} ({reason}); worker processes try each of them, and all further "
                "ones that it does not decode, without a word",
                stacklevel=2,
            )


def _short(error: Exception) -> str:
    """Of DALI's ten lines the one that says what it met."""
    return str(error).partition("encountered:")[2].strip().split("\n")[0] or str(error) or repr(error)


def _names(tasks: list[Task]) -> str:
    return ", ".join(task.source.uri for task in tasks)
