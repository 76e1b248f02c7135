"""Looks into every video file once, so that training never has to: frame count, rate, size, or why it is refused.

What is refused, and what is not:

- `frames` counts the pictures that the decoder shows before its first error or damaged picture; the loader never asks
  for one beyond it. A file that loses more than half of its frames by this is refused.
- A file cut short is used as far as it goes. One frame is enough: the loader repeats the last frame of a short file.
- Rotation marks are ignored, here as by both decoders: such a file is accepted and seen as stored.
- Missing or disordered time stamps are no reason: the loader then counts frames instead.
- Still pictures, text, play lists, cover art of audio files, a picture size that changes midway and pictures of more
  than 64 megapixels are refused.

Each file is probed in a child process: one that hangs is killed, one that crashes takes only its own file with it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import av.logging
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from simvtp_ds.data.pool import Crashed, Hung, Pool

MAX_PIXELS = 1 << 26
_LFS_HEAD = b"version https://git-lfs.github.com/spec/"
_NOT_VIDEO = {"tty", "hls", "concat", "dash", "image2", "ico", "sdp", "webvtt", "srt", "ass"}


@dataclass(frozen=True)
class Probe:
    """What was found. `reason` is empty for a usable file, else "kind: detail" (the rest is then as far as known).

    frames: usable frames; fps: average rate (0: unknown); width, height: pixels as stored; codec: FFmpeg's name.
    """

    reason: str = ""
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""


def stat_file(path: str) -> tuple[int, int] | str:
    """(size in bytes, mtime in ns) of a regular file, or the reason why it cannot be one."""
    try:
        info = os.stat(path)  # noqa: PTH116 (a path with a NUL byte must raise here)
    except FileNotFoundError:
        return "file missing: no such file"
    except (OSError, ValueError) as error:
        return f"file unreadable: {getattr(error, 'strerror', None) or error}"
    if not stat.S_ISREG(info.st_mode):
        return "not a file: a folder, pipe or device"
    if info.st_size == 0:
        return "empty file: 0 bytes"
    return info.st_size, info.st_mtime_ns


def probe_file(path: str) -> Probe:
    """Decodes the whole file on one thread and says what is usable of it. Never raises on what a file holds."""
    size = stat_file(path)
    if isinstance(size, str):
        return Probe(size)
    try:
        with Path(path).open("rb") as file:
            head = file.read(64)
    except OSError as error:
        return Probe(f"file unreadable: {error.strerror}")
    if head.startswith(_LFS_HEAD):
        return Probe("Git LFS pointer: the video itself is not here, run git lfs pull")
    try:
        with av.open(path, options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            return _probe_container(container)
    except FFmpegError as error:
        if head[4:8] == b"ftyp":
            return Probe(f"not a readable video: mp4 without a usable index (moov), cut short? ({error.strerror})")
        return Probe(f"not a readable video: {error.strerror}")
    except Exception as error:  # a probe must end in a reason, whatever a library raises on odd bytes
        return Probe(f"not a readable video: {type(error).__name__}: {error}")


def _probe_container(container: InputContainer) -> Probe:
    name = container.format.name
    if name in _NOT_VIDEO or name.endswith("_pipe"):
        return Probe(f"not a video: a still picture, text or play list ({name})")
    if not container.streams.video:
        kinds = ", ".join(sorted({s.type or "unknown" for s in container.streams})) or "none"
        return Probe(f"no video stream: streams found: {kinds}")
    stream = container.streams.video[0]
    if stream.disposition & Disposition.attached_pic:
        return Probe("no video stream: the only picture is cover art")
    if stream.codec_context is None:
        return Probe("no decoder: FFmpeg decodes no such video codec")
    codec = stream.codec_context.name
    if stream.width * stream.height > MAX_PIXELS:
        return Probe(f"picture too large: {stream.width} x {stream.height}, at most {MAX_PIXELS} pixels", codec=codec)
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"skip_loop_filter": "all"}  # a third faster; what counts as damage stays the same
    return _decode_all(container, stream, codec)


def _decode_all(container: InputContainer, stream: VideoStream, codec: str) -> Probe:
    packets = frames = 0  # frames: those before the first damage
    sizes: set[tuple[int, int]] = set()
    damage = ""
    try:
        for packet in container.demux(stream):
            packets += bool(packet.size and not packet.is_discard)
            try:
                for frame in packet.decode():
                    sizes.add((frame.width, frame.height))
                    if frame.is_corrupt:
                        damage = damage or "picture data damaged"
                    frames += not damage
            except FFmpegError as error:
                damage = damage or str(error.strerror)
    except FFmpegError as error:  # the container itself ends in garbage: keep what came before
        damage = damage or str(error.strerror)
    width, height = min(sizes, default=(stream.width, stream.height))
    frames = min(frames, packets)
    reason = ""
    if not packets:
        named = f"the header names {stream.frames} frames" if stream.frames else "a header only"
        reason = f"no frames: {named}, but the file holds none"
    elif not frames or (damage and 2 * frames < packets):
        reason = f"damaged: {frames} of {packets} frames decode before the first fault ({damage or 'none is shown'})"
    elif len(sizes) > 1:
        reason = f"size changes: pictures of {' and '.join(f'{w} x {h}' for w, h in sorted(sizes))} in one file"
    return Probe(reason, frames, float(stream.average_rate or stream.guessed_rate or 0), width, height, codec)


def _start(probe: Callable[[str], Probe]) -> Callable[[str], Probe]:
    """In the child process: FFmpeg's messages off, since each fault ends in a reason."""
    av.logging.set_level(None)
    return probe


def probe_files(
    paths: Iterable[str], workers: int, timeout: float, probe: Callable[[str], Probe] = probe_file
) -> Iterator[tuple[str, Probe]]:
    """Probes each path in one of `workers` child processes; yields (path, result) as they end, in no fixed order.

    A file that takes longer than `timeout` seconds is "hung", one whose child dies is "decoder crashed"; in both cases
    a new child goes on with the next file. All children end with the iterator, and with this process, however it ends.
    """
    todo = list(paths)
    if not todo:
        return
    with Pool("probe", min(workers, len(todo)), partial(_start, probe), timeout, needs="av") as pool:
        pool.submit(todo)
        for path, result in pool.drain():
            yield path, result if isinstance(result, Probe) else no_result(result)


def no_result(outcome: Hung | Crashed) -> Probe:
    """The reason for a file at which its process was killed or died."""
    if isinstance(outcome, Hung):
        return Probe(f"hung: not done after {outcome.seconds:g} s")
    code = outcome.exit_code
    ending = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return Probe(f"decoder crashed: its process ended by {ending}")
