"""A video as a small H.264 mp4 with a key frame every so many frames, which decodes fast from anywhere.

- Pixels are kept as stored: rotation marks are ignored, colour tags dropped, as training does. RGB becomes BT.601.
- Time stamps are kept where every frame has one and they rise, else the frames get the file's average rate. With
  `frames_per_second` each tick shows the frame nearest to it: frames are dropped or repeated by presentation time.
- One thread, no dates, no scene cuts: the same file gives the same bytes.
- Entropy coding and filters are those that decode fastest (x264's tune "fastdecode"): half the time for a tenth more
  bytes and 0.2 dB.
- Key frames and every fourth frame between them are all that others refer to, so a decoder may leave out the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import floor
from pathlib import Path
from typing import TypeAlias

import av
from av.codec.context import ThreadType
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

SWSCALE = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
UNKNOWN_RATE = 25.0  # frames a second of a file that does not say
SKIPPABLE = 3  # frames in a row that no other refers to
_LONGEST_GOP = 1_000_000  # x264 counts in 32 bits, and takes what is beyond for something else
_MAX_UNITS = 10_000_000  # a second; finer time bases are broken headers

_Timed: TypeAlias = tuple[Fraction, VideoFrame]  # seconds since the first frame


@dataclass(frozen=True)
class Encoding:
    """How videos are transcoded.

    Attributes:
        short_side: Most pixels of the shorter side, even; smaller videos are not enlarged. 0: the size is kept.
        gop: Frames from a key frame to the next.
        frames_per_second: Constant rate; 0: the file's own times.
    """

    short_side: int = 0
    gop: int = 16
    frames_per_second: float = 0.0

    def __post_init__(self) -> None:
        if self.short_side and (self.short_side < 16 or self.short_side % 2):
            raise ValueError(f"--short-side is {self.short_side}; give an even number of pixels from 16")
        if not 1 <= self.gop <= _LONGEST_GOP:
            raise ValueError(f"--gop is {self.gop}; give 1 to {_LONGEST_GOP} frames")
        if not 0 <= self.frames_per_second <= 1000:
            raise ValueError(f"--frames-per-second is {self.frames_per_second:g}; give a rate above 0 and up to 1000")


class TranscodeError(RuntimeError):
    """The file cannot be transcoded."""


class _DisorderedError(Exception):
    """Time stamps are missing or do not rise."""


def transcode(path: str, frames: int, fps: float, encoding: Encoding) -> bytes:
    """An mp4 of the first `frames` frames of a file whose average rate is `fps` (0: unknown).

    Without a constant rate it has as many frames.

    Raises:
        TranscodeError, FFmpegError: The file does not have these frames.
    """
    rate = Fraction(fps or UNKNOWN_RATE).limit_denominator(100_000)
    try:
        return _encoded(_by_time_stamps(path, frames), rate, None, encoding)
    except _DisorderedError:
        return _encoded(_by_number(path, frames, rate), rate, 1 / rate, encoding)


def fitted(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) after transcoding: even, at least 2, and the shorter side at most `short_side` where given."""
    shorter = min(width, height)
    scale = Fraction(min(short_side, shorter), shorter) if short_side else Fraction(1)
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _shown(path: str, count: int) -> Iterator[VideoFrame]:
    """The first frames of a file."""
    shown = 0
    with av.open(path, options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.thread_type = ThreadType.NONE
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            yield frame
            shown += 1
            if shown == count:
                return
    raise TranscodeError(f"{shown} frames decode, {count} did when it was probed")


def _by_time_stamps(path: str, count: int) -> Iterator[_Timed]:
    first = last = None
    for frame in _shown(path, count):
        unit = frame.time_base
        if frame.pts is None or not unit or unit < Fraction(1, _MAX_UNITS) or (last is not None and frame.pts <= last):
            raise _DisorderedError
        first, last = frame.pts if first is None else first, frame.pts
        yield (frame.pts - first) * unit, frame


def _by_number(path: str, count: int, rate: Fraction) -> Iterator[_Timed]:
    for number, frame in enumerate(_shown(path, count)):
        yield number / rate, frame


def _at_constant_rate(timed: Iterable[_Timed], rate: Fraction, wanted: Fraction) -> Iterator[_Timed]:
    """A frame holds the ticks from the one nearest to its time up to the one nearest to the next frame's time."""
    ticks, before, time = 0, None, Fraction(0)  # ticks: how many are filled
    for time, frame in timed:
        while before and ticks < _nearest(time * wanted):
            yield ticks / wanted, before
            ticks += 1
        before = frame
    while before and ticks < max(1, _nearest((time + 1 / rate) * wanted)):
        yield ticks / wanted, before
        ticks += 1


def _nearest(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


def _encoded(timed: Iterator[_Timed], rate: Fraction, unit: Fraction | None, encoding: Encoding) -> bytes:
    """The mp4; `unit`: seconds of a tick (None: the file's own)."""
    if encoding.frames_per_second:
        wanted = Fraction(str(encoding.frames_per_second))
        timed, rate, unit = _at_constant_rate(timed, rate, wanted), wanted, 1 / wanted
    elif unit is None:
        first = next(timed)
        timed, unit = chain([first], timed), first[1].time_base
    assert unit is not None
    # A name to open, in memory: the muxer reads back what it wrote to put the index first.
    memory = os.memfd_create("clip")
    try:
        path = Path(f"/proc/self/fd/{memory}")
        _mux(timed, str(path), rate, unit, encoding)
        return path.read_bytes()
    finally:
        os.close(memory)


def _mux(timed: Iterable[_Timed], path: str, rate: Fraction, unit: Fraction, encoding: Encoding) -> None:
    gop, reformatter = encoding.gop, VideoReformatter()
    # mbtree with B-frames reads memory that x264 never wrote: other bytes in another process.
    pattern = f"mbtree=0:bframes={min(SKIPPABLE, gop - 1)}:b-adapt=0:b-pyramid=none"
    cheap = "cabac=0:no-deblock=1:weightp=0"
    options = {
        "preset": "veryfast",
        "crf": "20",
        "threads": "1",
        "flags": "+bitexact",
        "a53cc": "0",
        "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:{pattern}:{cheap}",
    }
    with av.open(path, "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        for time, frame in timed:
            if not stream.codec_context.is_open:
                stream.width, stream.height = fitted(frame.width, frame.height, encoding.short_side)
                stream.pix_fmt = "yuv420p"
                stream.codec_context.thread_count = 1
                stream.codec_context.time_base = unit
            frame.colorspace, frame.color_range = 2, 0  # unspecified: swscale then changes no colours
            picture = reformatter.reformat(
                frame, stream.width, stream.height, "yuv420p", interpolation=SWSCALE, threads=1
            )
            picture.pts, picture.time_base, picture.pict_type = int(time / unit), unit, PictureType.NONE
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
