"""Decoder processes: a decoder that hangs or crashes costs one clip, not the run.

Each process decodes one clip at a time straight into shared memory. It imports no torch.
"""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np

from simvtp_ds.data.decode import decode_into
from simvtp_ds.data.pool import Crashed, Hung, Outcome, Pool
from simvtp_ds.data.sampling import View
from simvtp_ds.data.storage import DEFAULTS, Source, is_url
from simvtp_ds.data.storage_remote import longest_read
from simvtp_ds.data_config import StorageConfig
from simvtp_ds.urls import without_secrets


class Task(NamedTuple):
    """One clip to decode and where it goes."""

    slot: int
    position: int
    source: Source
    view: View
    # What the manifest says of the file, for a decoder that has to know (DALI).
    codec: str = ""
    size: tuple[int, int] = (0, 0)  # height and width


Decoded: TypeAlias = Outcome[Task, str | None]  # the result is None when the frames are in place, else the reason


class DecoderPool(Pool[Task, str | None]):
    """Decoder processes around a block of shared memory, `frames`.

    Args:
        workers: Processes.
        shape: Shape of `frames`: (slots, B, T, H, W, 3).
        timeout: Seconds a clip may take (data.decode_timeout); one at a URL gets the time for all tries on top.
        storage: How the clips' bytes are read.
    """

    def __init__(self, workers: int, shape: tuple[int, ...], timeout: float, storage: StorageConfig = DEFAULTS) -> None:
        # An unlinked file in /dev/shm (or, where that is too small, in the temporary folder): nothing stays behind.
        memory: Any = multiprocessing.get_context("spawn").RawArray(ctypes.c_uint8, int(np.prod(shape)))
        self.frames = np.frombuffer(memory, dtype=np.uint8).reshape(shape)
        self._reading = longest_read(storage)
        super().__init__("decoder", workers, partial(_start, memory, shape, storage), timeout, needs="av and cv2")

    def take(self, slot: int) -> np.ndarray:
        """A copy of the clips of a slot, uint8 [B, T, H, W, 3]; the slot is free."""
        return self.frames[slot].copy()

    def limit(self, task: Task) -> float:
        """Seconds that the task may take."""
        return super().limit(task) + self._reading * is_url(task.source.uri)


def failure(outcome: Decoded) -> str | None:
    """Why the clip is not in its place; None if it is."""
    uri = without_secrets(outcome.task.source.uri)
    match outcome.result:
        case Hung(seconds):
            return f"{uri}: not decoded after {seconds:g} s (data.decode_timeout), decoder killed"
        case Crashed(code):
            return f"{uri}: the decoder process ended with exit code {code}"
        case reason:
            return reason


def _start(memory: Any, shape: tuple[int, ...], storage: StorageConfig) -> Callable[[Task], str | None]:
    """In the decoder process: the function that decodes into the shared memory."""
    cv2.setNumThreads(1)
    return partial(_decode, np.frombuffer(memory, dtype=np.uint8).reshape(shape), storage)


def _decode(frames: np.ndarray, storage: StorageConfig, task: Task) -> str | None:
    """Decodes into the task's place; a clip must never end the process, whatever is wrong with it."""
    try:
        decode_into(frames[task.slot, task.position], task.source, task.view, storage)
    except Exception as error:
        return str(error) or repr(error)
    return None
