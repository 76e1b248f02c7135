"""Micro batches in a fixed order, decoded ahead by processes that may hang or die without stopping the run.

What a batch holds is a pure function of (examples, seed, step, the rank's place): the number of workers and which
decoder died change nothing. (DALI's pixels on a GPU differ by up to 2 levels, see data/dali_decoder.py.) A clip that
cannot be decoded is replaced by another, also as a pure function.
"""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic

from simvtp_ds.data.backend import Decoder, OpenDecoder, decoder_here
from simvtp_ds.data.decode import BadClip, DataError
from simvtp_ds.data.examples import Examples, clips_of
from simvtp_ds.data.manifest import Clip
from simvtp_ds.data.order import Draws, micro_batches
from simvtp_ds.data.worker import Decoded, Task, failure
from simvtp_ds.data_config import DataConfig
from simvtp_ds.types import AnyBatch, pinned
from simvtp_ds.urls import without_secrets

MAX_ATTEMPTS = 100  # clips tried for one place of a batch
SHARE_AFTER = 200  # clips after which the share of bad ones is judged
JOIN_TIMEOUT = 60.0  # seconds; the thread ends at once unless the kernel keeps a killed decoder


@dataclass
class _Pending:
    """A micro batch in the making, of n clips."""

    step: int
    draws: Draws  # n examples as the order has them, and the epoch of each
    slot: int
    clips: list[Clip]  # [n], replacements included
    missing: int  # clips not decoded yet
    attempts: list[int]  # [n], replacements made for each place
    bad: list[list[BadClip]]  # [n], those of each place in the order they were tried


class Loader(Generic[AnyBatch]):
    """Iterates over a rank's micro batches of the global steps start_step .. end_step - 1 (for ever without end_step).

    One thread hands out the decoding and assembles the batches; the decoders run from the first `next` until the
    iterator ends or is closed. `wait_seconds` is the time the consumer was blocked; `clips_seen` (bad ones included)
    and `clips_bad` count up to the batch handed out last.

    Args:
        examples: What the batches are made of.
        data: Settings of the clips.
        micro_batch: Rows of a micro batch (B): views of clips, where a clip has several.
        accumulation: Micro batches of a step and rank.
        rank: This rank.
        world_size: All ranks.
        start_step: First global step; the epoch follows from `steps_per_epoch`.
        end_step: Global step to stop before.
        on_bad: Told of every clip that was replaced, in the consumer's thread, before the batch that it concerns.
        decoder: Who decodes; None: as `data.backend` says.

    Raises:
        ValueError: Settings that cannot work.
        DataError: While iterating: more than `data.max_bad_share` of the clips are bad (judged after 200 clips and at
            the end), or 100 in a row for one place.
    """

    def __init__(
        self,
        examples: Examples[AnyBatch],
        data: DataConfig,
        micro_batch: int,
        accumulation: int,
        rank: int,
        world_size: int,
        start_step: int = 0,
        end_step: int | None = None,
        on_bad: Callable[[BadClip], None] = lambda bad: None,
        decoder: OpenDecoder | None = None,
    ) -> None:
        self._examples, self._data, self._on_bad = examples, data, on_bad
        self._open_decoder = decoder or decoder_here(data)
        self._clips = clips_of(micro_batch, examples)  # of a micro batch
        self._place = (accumulation, rank, world_size, start_step, end_step)
        self._order = examples.order(self._clips * accumulation * world_size)
        self.steps_per_epoch = self._order.steps_per_epoch
        self.wait_seconds, self.clips_seen, self.clips_bad = 0.0, 0, 0
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[AnyBatch]:
        """Micro batches in order."""
        if self._thread is not None:
            raise RuntimeError("this loader is being iterated already; close it first or make another loader")
        self._results: queue.SimpleQueue[AnyBatch | BadClip | BaseException | None] = queue.SimpleQueue()
        self._wake_reader, self._wake_writer = multiprocessing.Pipe(duplex=False)
        self._stop = threading.Event()
        self._taken = 0  # batches the consumer took, written by it and read by the thread
        self._thread = threading.Thread(target=self._run, name="simvtp-loader", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        reasons: deque[str] = deque(maxlen=5)
        try:
            while True:
                began = time.monotonic()
                result = self._results.get()
                self.wait_seconds += time.monotonic() - began
                match result:
                    case BadClip():
                        self.clips_seen, self.clips_bad = self.clips_seen + 1, self.clips_bad + 1
                        reasons.append(result.reason)
                        self._on_bad(result)
                    case None:
                        self._judge(reasons, 1)
                        return
                    case BaseException():
                        raise result
                    case batch:
                        self.clips_seen += self._clips
                        self._judge(reasons, SHARE_AFTER)
                        self._taken += 1
                        self._wake_writer.send_bytes(b".")
                        yield batch
        finally:
            self.close()

    def close(self) -> None:
        """Ends the thread and every decoder; harmless when nothing runs."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        atexit.unregister(self.close)
        self._stop.set()
        self._wake_writer.send_bytes(b".")
        thread.join(JOIN_TIMEOUT)
        self._wake_reader.close()
        self._wake_writer.close()

    def _judge(self, reasons: deque[str], minimum: int) -> None:
        if self.clips_seen >= minimum and self.clips_bad > self._data.max_bad_share * self.clips_seen:
            raise DataError(
                f"{self.clips_bad} of {self.clips_seen} clips cannot be decoded, more than data.max_bad_share allows; "
                "repair or prepare the manifest again; the last reasons:\n  " + "\n  ".join(reasons)
            )

    def _run(self) -> None:
        """The thread: all that it finds goes into the queue, its own failure too."""
        pending: deque[_Pending] = deque()
        data = self._data
        shape = (data.prefetch + 1, self._clips, data.num_frames, data.image_size, data.image_size, 3)
        try:
            with self._open_decoder(data, shape) as decoder:
                self._produce(decoder, pending)
            self._results.put(RuntimeError("the loader was closed while it was read") if self._stop.is_set() else None)
        except BaseException as error:
            for batch in pending:
                self._report(batch)
            self._results.put(error)

    def _produce(self, decoder: Decoder, pending: deque[_Pending]) -> None:
        """Keeps `prefetch` + 1 micro batches in the making or ready, and puts them out in order."""
        slots = list(range(self._data.prefetch + 1))
        plan = self._plan()
        made = 0
        while not self._stop.is_set():
            while len(pending) + made - self._taken <= self._data.prefetch and (batch := next(plan, None)):
                batch.slot = slots.pop()
                pending.append(batch)
                decoder.submit([self._task(batch, position) for position in range(self._clips)])
            if not pending and made == self._taken:
                return
            for outcome in decoder.poll(self._wake_reader):
                self._settle(decoder, next(batch for batch in pending if batch.slot == outcome.task.slot), outcome)
            while self._wake_reader.poll():
                self._wake_reader.recv_bytes()
            while pending and pending[0].missing == 0:
                if self._lacks_clips(pending[0]):
                    decoder.submit_first(self._replace(pending[0], self._clips - 1))
                    break
                frames, clips = decoder.take(pending[0].slot), pending[0].clips
                batch = pinned(self._examples.assemble(frames, clips, pending[0].draws.epochs.tolist()))
                self._report(pending[0])
                slots.append(pending.popleft().slot)
                made += 1
                self._results.put(batch)

    def _report(self, batch: _Pending) -> None:
        for bad in itertools.chain.from_iterable(batch.bad):
            self._results.put(bad)

    def _plan(self) -> Iterator[_Pending]:
        count = self._clips
        for step, draws in micro_batches(self._order, *self._place):
            clips = [self._examples.clip(int(row), int(epoch)) for row, epoch in zip(*draws, strict=True)]
            yield _Pending(step, draws, -1, clips, count, [0] * count, [[] for _ in clips])

    def _task(self, batch: _Pending, position: int) -> Task:
        clip = batch.clips[position]
        return Task(
            batch.slot,
            position,
            clip.source,
            self._examples.view(clip, int(batch.draws.epochs[position])),
            clip.codec,
            (clip.height, clip.width),
        )

    def _lacks_clips(self, batch: _Pending) -> bool:
        """Whether too many places hold the same clip, under other captions or as a replacement, and may be replaced."""
        different = len({clip.clip_id for clip in batch.clips})
        return different < self._examples.least_clips and batch.attempts[-1] < MAX_ATTEMPTS

    def _settle(self, decoder: Decoder, batch: _Pending, outcome: Decoded) -> None:
        """Notes a decoded clip, or puts another in the place of a bad one."""
        batch.missing -= 1
        if (reason := failure(outcome)) is None:
            return
        position = outcome.task.position
        clip = batch.clips[position]
        batch.bad[position].append(
            BadClip(without_secrets(clip.uri), clip.clip_id, reason, int(batch.draws.epochs[position]), batch.step)
        )
        if batch.attempts[position] >= MAX_ATTEMPTS:
            reasons = "\n  ".join(bad.reason for bad in batch.bad[position][-5:])
            raise DataError(f"{MAX_ATTEMPTS} replacements in a row cannot be decoded; the last reasons:\n  {reasons}")
        decoder.submit_first(self._replace(batch, position))

    def _replace(self, batch: _Pending, position: int) -> Task:
        """The next clip for a place."""
        batch.attempts[position] += 1
        index, epoch = (int(part[position]) for part in batch.draws)
        replacement = self._examples.replacement(index, epoch, batch.attempts[position])
        batch.clips[position] = self._examples.clip(replacement, epoch)
        batch.missing += 1
        return self._task(batch, position)
