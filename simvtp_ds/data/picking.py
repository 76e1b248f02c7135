"""The wanted frames of an open file, found by their times or by counting."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeAlias

from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

REORDERED = 64  # packets kept after as many as precede the last wanted frame; H.264 and HEVC hold back 16 frames

Shoot: TypeAlias = Callable[[int, VideoFrame], None]  # takes frame number n of the file


class DecodeError(RuntimeError):
    """A clip that cannot be shown as asked; the message names the file and the reason."""


def pick_by_times(container: InputContainer, stream: VideoStream, wanted: list[int], shoot: Shoot) -> bool:
    """Shoots the `wanted` frames (ascending), decoded from the key frame before the first.

    The file is read once, from its start, without seeking. False where times do not serve: some frames may be missing.
    """
    packets, stored = read_packets(container, stream, wanted[0], wanted[-1])
    times = sorted({pts for pts in stored if pts is not None})
    if len(times) < len(stored):
        return False  # times are missing or occur twice
    if stream.codec_context.has_b_frames and times == stored:
        return False  # frames are reordered, yet their times are not: AVI numbers frames as they are stored
    if wanted[-1] >= len(times):
        raise DecodeError(f"frame {wanted[-1]} is wanted, the file has {len(times)}; prepare the manifest again")
    missing = {times[index]: index for index in wanted}
    keys = [(p.pts, place) for place, p in enumerate(packets) if p.is_keyframe and p.pts is not None]
    keys = [key for key in keys if key[0] <= times[wanted[0]]]
    if not keys:
        return False
    start, place = max(keys)
    latest = start
    for frame in _decode(stream.codec_context, packets[place:], set(missing)):
        if frame.pts is None or frame.pts < start:
            continue  # shown before the key frame: what it refers to was not decoded
        if frame.pts < latest:
            return False  # shown out of the order of their times
        latest = frame.pts
        _refuse_damaged(frame)
        if frame.pts in missing:
            shoot(missing.pop(frame.pts), frame)
        if not missing:
            return True
    return False


def read_packets(
    container: InputContainer, stream: VideoStream, first: int, last: int
) -> tuple[list[Packet[VideoStream]], list[int | None]]:
    """Packets of the key frame before frame `first` to frame `last` and some around; times of all, as stored.

    Of a long file neither what comes long before nor what comes after stays in memory.
    """
    kept: list[Packet[VideoStream]] = []
    times: list[int | None] = []
    key = 0  # where the latest key frame is in `kept`
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.is_keyframe and len(times) <= first:
            del kept[:key]  # the key frame at `key` is shown before the one of this packet, hence before `first`
            key = len(kept)
        if len(times) <= last + REORDERED:
            kept.append(packet)
        if not packet.is_discard:  # others are decoded for those that refer to them, and never shown
            times.append(packet.pts)
    return kept, times


def _decode(
    decoder: VideoCodecContext, packets: list[Packet[VideoStream]], wanted: Collection[int]
) -> Iterator[VideoFrame]:
    """Frames until all `wanted` times are out; of the others only those that frames refer to: same pixels, less work.

    Once the packets of all wanted frames are in, the decoder is told that the stream ends: it hands out what it holds
    back without decoding what follows. Not so where a frame may come in two packets, one a field.
    """
    waiting = set(wanted)
    frame_packets = False  # a frame came out, and it was not interlaced
    for packet in packets:
        decoder.skip_frame = "DEFAULT" if packet.pts in waiting else "NONREF"
        waiting.discard(packet.pts)
        for frame in packet.decode():
            frame_packets = not frame.interlaced_frame
            yield frame
        if not waiting and frame_packets:
            break
    for frame in decoder.decode(None):
        if frame_packets and frame.interlaced_frame:
            return  # its second field may not have been decoded
        yield frame


def pick_by_count(container: InputContainer, stream: VideoStream, wanted: list[int], shoot: Shoot) -> None:
    """Shoots the `wanted` frames (ascending) by counting from the first one: slow, needs no times."""
    count = 0
    for frame in container.decode(stream):
        _refuse_damaged(frame)
        if count in wanted:
            shoot(count, frame)
        count += 1
        if count > wanted[-1]:
            return
    raise DecodeError(f"frame {wanted[-1]} is wanted, {count} can be decoded; prepare the manifest again")


def _refuse_damaged(frame: VideoFrame) -> None:
    """A concealed error would reach the wanted frames through their references."""
    if frame.is_corrupt:
        raise DecodeError(f"damaged frame at {frame.time} s")
