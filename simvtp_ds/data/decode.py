"""The wanted frames of a clip as RGB bytes, decoded on the CPU with PyAV.

Which frames come out is decided in picking.py, their colours in camera.py. Rotation tags are ignored. Imports no torch:
decoder processes start fast and stay small.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import NamedTuple

import av
import numpy as np
from av.codec.context import ThreadType
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from simvtp_ds.data.augment import noise
from simvtp_ds.data.camera import Camera
from simvtp_ds.data.picking import DecodeError, pick_by_count, pick_by_times
from simvtp_ds.data.sampling import View
from simvtp_ds.data.storage import DEFAULTS, ByteRange, Source, open_source
from simvtp_ds.data_config import StorageConfig
from simvtp_ds.urls import without_secrets


class DataError(RuntimeError):
    """Too many clips of a run cannot be decoded."""


class BadClip(NamedTuple):
    """A clip that could not be decoded and was replaced."""

    uri: str
    clip_id: str
    reason: str
    epoch: int
    step: int  # global step


def decode_into(out: np.ndarray, source: Source, view: View, storage: StorageConfig = DEFAULTS) -> None:
    """The frames of a view: cropped, resized (bilinear, no antialiasing), mirrored and augmented as the view says.

    Args:
        out: Where the clip is written, uint8 [T, H, W, 3], contiguous; after an error it holds anything.
        source: The video.
        view: What to show of it; T frames.
        storage: How its bytes are read.

    Raises:
        DecodeError: The file cannot be opened, has fewer frames, a damaged frame on the way, or the box does not fit.
    """
    wanted = sorted({int(index) for index in view.indices})
    camera = Camera(out, view)
    try:
        with open_source(source, storage) as file:
            with _opened(file) as (container, stream):
                complete = pick_by_times(container, stream, wanted, camera.shoot)
            if not complete:
                with _opened(file) as (container, stream):
                    pick_by_count(container, stream, wanted, camera.shoot)
    except (DecodeError, FFmpegError, OSError, ValueError) as error:
        shown = without_secrets(source.uri)
        reason = str(error).removeprefix(f"{shown}: ")
        raise DecodeError(f"{shown}: {reason}") from error
    erasing = view.augmentation.erasing
    if erasing is not None:
        top, left, height, width, _ = erasing
        out[:, top : top + height, left : left + width] = noise(erasing, len(out))


@contextmanager
def _opened(file: str | ByteRange | BytesIO) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container, from its first byte, and its first video stream, decoded by one thread."""
    if not isinstance(file, str):
        file.seek(0)
    with av.open(file, mode="r", metadata_errors="replace") as container:
        if not container.streams.video:
            raise DecodeError("no video stream")
        stream = container.streams.video[0]  # the one that the manifest counts
        stream.thread_type = ThreadType.NONE
        stream.codec_context.thread_count = 1
        yield container, stream
