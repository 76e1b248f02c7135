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

from simvtp_ds.data.decode import Source, decode_into
from simvtp_ds.data.pool import Crashed, Hung, Outcome, Pool
from simvtp_ds.data.sampling import View


class Task(NamedTuple):
    """One clip to decode and where it goes."""

    slot: int
    position: int
    source: Source
    view: View


Decoded: TypeAlias = Outcome[Task, str | None]  # the result is None when the frames are in place, else the reason


class DecoderPool(Pool[Task, str | None]):
    """Decoder processes around a block of shared memory, `frames`.

    Args:
        workers: Processes.
        shape: Shape of `frames`: (slots, B, T, H, W, 3).
        timeout: Seconds a clip may take (data.decode_timeout).
    """

    def __init__(self, workers: int, shape: tuple[int, ...], timeout: float) -> None:
        # An unlinked file in /dev/shm (or, where that is too small, in the temporary folder): nothing stays behind.
        memory: Any = multiprocessing.get_context("spawn").RawArray(ctypes.c_uint8, int(np.prod(shape)))
        self.frames = np.frombuffer(memory, dtype=np.uint8).reshape(shape)
        super().__init__("decoder", workers, partial(_start, memory, shape), timeout, needs="av and cv2")


def failure(outcome: Decoded) -> str | None:
    """Why the clip is not in its place; None if it is."""
    uri = outcome.task.source.uri
    match outcome.result:
        case Hung(seconds):
            return f"{uri}: not decoded after {seconds:g} s (data.decode_timeout), decoder killed"
        case Crashed(code):
            return f"{uri}: the decoder process ended with exit code {code}"
        case reason:
            return reason


def _start(memory: Any, shape: tuple[int, ...]) -> Callable[[Task], str | None]:
    """In the decoder process: the function that decodes into the shared memory."""
    cv2.setNumThreads(1)
    return partial(_decode, np.frombuffer(memory, dtype=np.uint8).reshape(shape))


def _decode(frames: np.ndarray, task: Task) -> str | None:
    """Decodes into the task's place; a clip must never end the process, whatever is wrong with it."""
    try:
        decode_into(frames[task.slot, task.position], task.source, task.view)
    except Exception as error:
        return str(error) or repr(error)
    return None
