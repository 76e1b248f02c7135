"""The wanted frames of a clip as RGB bytes, decoded on the CPU with PyAV.

The pixels are DALI's: BT.601 whatever the file's colour tags say, swscale with full horizontal chroma and accurate
rounding (shared measurements: no difference on VP8, VP9, MJPEG, H.264 and HEVC). Rotation tags are ignored.
Imports no torch: decoder processes start fast and stay small.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.codec.context import ThreadType
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from simvtp_ds.data.augment import changed, noise
from simvtp_ds.data.sampling import View

SWSCALE = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
UNSPECIFIED_SPACE, UNSPECIFIED_RANGE = 2, 0  # AVCOL_SPC_UNSPECIFIED, AVCOL_RANGE_UNSPECIFIED


class DecodeError(RuntimeError):
    """A clip that cannot be shown as asked; the message names the file and the reason."""


class DataError(RuntimeError):
    """Too many clips of a run cannot be decoded."""


class BadClip(NamedTuple):
    """A clip that could not be decoded and was replaced."""

    uri: str
    clip_id: str
    reason: str
    epoch: int
    step: int  # global step


class Source(NamedTuple):
    """Where the bytes of a video are: `length` bytes from `offset` of a local file."""

    uri: str
    offset: int
    length: int


class ByteRange:
    """A part of a local file as a seekable file of its own, read with pread."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0
        self._file = os.open(source.uri, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, size: int) -> bytes:
        """At most `size` bytes from the current position; none at the end."""
        size = max(0, min(size, self._source.length - self._position))
        data = os.pread(self._file, size, self._source.offset + self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a position of the part and returns it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """The current position."""
        return self._position

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def decode_into(out: np.ndarray, source: Source, view: View) -> None:
    """The frames of a view: cropped, resized (bilinear, no antialiasing), mirrored and augmented as the view says.

    Args:
        out: Where the clip is written, uint8 [T, H, W, 3].
        source: The video.
        view: What to show of it; T frames.

    Raises:
        DecodeError: The file cannot be opened, has fewer frames, a damaged frame on the way, or the box does not fit.
    """
    wanted = sorted({int(index) for index in view.indices})
    camera = _Camera(view, height=out.shape[1], width=out.shape[2])
    try:
        with _opened(source) as (container, stream):
            found = _seek_and_pick(container, stream, wanted, camera)
        if found is None:
            with _opened(source) as (container, stream):
                found = _count_and_pick(container, stream, wanted, camera)
    except (DecodeError, FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"{source.uri}: {error}") from error
    operations, erasing = view.augmentation
    pictures = {index: changed(picture, operations) for index, picture in found.items()}
    for target, index in zip(out, view.indices, strict=True):
        np.copyto(target, pictures[int(index)])
    if erasing is not None:
        top, left, height, width, _ = erasing
        out[:, top : top + height, left : left + width] = noise(erasing, len(out))


@contextmanager
def _opened(source: Source) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream, decoded by one thread."""
    whole = source.offset == 0 and source.length == Path(source.uri).stat().st_size
    part = None if whole else ByteRange(source)
    try:
        with av.open(part or source.uri, mode="r", metadata_errors="replace") as container:
            if not container.streams.video:
                raise DecodeError("no video stream")
            stream = container.streams.video[0]  # the one that the manifest counts
            stream.thread_type = ThreadType.NONE
            stream.codec_context.thread_count = 1
            yield container, stream
    finally:
        if part is not None:
            part.close()


def _seek_and_pick(
    container: InputContainer, stream: VideoStream, wanted: list[int], camera: _Camera
) -> dict[int, np.ndarray] | None:
    """Wanted frames by their presentation times, from the key frame before the first; None where times do not serve.

    Only frames that others refer to are decoded on the way: same pixels, a quarter to a third of the time saved.
    """
    packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
    times = sorted({pts for pts, _ in packets if pts is not None})
    if len(times) < len(packets):
        return None  # times are missing or occur twice
    if stream.codec_context.has_b_frames and times == [pts for pts, _ in packets]:
        return None  # frames are reordered, yet their times are not: AVI numbers frames as they are stored
    if wanted[-1] >= len(times):
        raise DecodeError(f"frame {wanted[-1]} is wanted, the file has {len(times)}; prepare the manifest again")
    missing = {times[index]: index for index in wanted}
    keys = [pts for pts, is_key in packets if is_key and pts is not None and pts <= times[wanted[0]]]
    if not keys:
        return None
    start = max(keys)
    container.seek(start, stream=stream, backward=True)
    found: dict[int, np.ndarray] = {}
    latest = start
    for number, packet in enumerate(container.demux(stream)):
        if number == 0 and (not packet.is_keyframe or packet.pts is None or packet.pts > start):
            return None  # this container cannot seek to its key frames
        stream.codec_context.skip_frame = "DEFAULT" if packet.pts in missing else "NONREF"
        for frame in packet.decode():
            if frame.pts is None or frame.pts < start:
                continue  # shown before the key frame: what it refers to was not decoded
            if frame.pts < latest:
                return None  # shown out of the order of their times
            latest = frame.pts
            _refuse_damaged(frame)
            if frame.pts in missing:
                found[missing.pop(frame.pts)] = camera.shoot(frame)
        if not missing:
            return found
    return None


def _count_and_pick(
    container: InputContainer, stream: VideoStream, wanted: list[int], camera: _Camera
) -> dict[int, np.ndarray]:
    """Wanted frames by counting from the first one: slow, needs no times."""
    found: dict[int, np.ndarray] = {}
    count = 0
    for frame in container.decode(stream):
        _refuse_damaged(frame)
        if count in wanted:
            found[count] = camera.shoot(frame)
        count += 1
        if count > wanted[-1]:
            return found
    raise DecodeError(f"frame {wanted[-1]} is wanted, {count} can be decoded; prepare the manifest again")


def _refuse_damaged(frame: VideoFrame) -> None:
    """A concealed error would reach the wanted frames through their references."""
    if frame.is_corrupt:
        raise DecodeError(f"damaged frame at {frame.time} s")


class _Camera:
    """Turns decoded frames into what a clip shows: colours, crop, size, mirror."""

    def __init__(self, view: View, height: int, width: int) -> None:
        self._view, self._size = view, (width, height)
        self._reformatter = VideoReformatter()

    def shoot(self, frame: VideoFrame) -> np.ndarray:
        """RGB uint8 [H, W, 3]; drops the frame's colour tags, which makes swscale use BT.601 as DALI does."""
        box = self._view.box
        if box.top + box.height > frame.height or box.left + box.width > frame.width:
            raise DecodeError(
                f"a picture of {frame.width} x {frame.height} does not hold {box}; prepare the manifest again"
            )
        frame.colorspace, frame.color_range = UNSPECIFIED_SPACE, UNSPECIFIED_RANGE
        rgb = self._reformatter.reformat(frame, format="rgb24", interpolation=SWSCALE, threads=1).to_ndarray()
        crop = rgb[box.top : box.top + box.height, box.left : box.left + box.width]
        picture = cv2.resize(crop, self._size, interpolation=cv2.INTER_LINEAR)
        return picture[:, ::-1] if self._view.flip else picture
