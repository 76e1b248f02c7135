"""Hands out videos to processes and puts what comes back into shards, in the videos' order."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import NamedTuple

from simvtp_ds.data.pack_tasks import WORK, Fault, PackPool, Transcode, read_work, remove_work, work_path
from simvtp_ds.data.pool import Crashed, Hung
from simvtp_ds.data.probe import Probe, no_result
from simvtp_ds.data.shards import Entry, Index, Packed, Shard, room
from simvtp_ds.data.transcode import Encoding
from simvtp_ds.data.videos import Videos
from simvtp_ds.progress import Show

_TEXTS = (".txt", ".json")  # extensions that the other members of a video have
_LONGEST_SUFFIX = 16  # bytes; a name of more than 100 takes blocks of its own in a tar, which `room` does not count


class PackError(RuntimeError):
    """Nothing can be packed, or no more; the message says why and what to do."""


class Span(NamedTuple):
    """Videos to pack, and the shards to pack them into (None: as many as it takes)."""

    number: int
    first: int
    end: int
    shards: int | None


def unfinished(finished: list[Index], videos: int) -> list[Span]:
    """What lies between the finished shards, and after the last."""
    spans, number, first = [], 0, 0
    for index in finished:
        if index.first > first:
            spans.append(Span(number, first, index.first, index.number - number))
        number, first = index.number + 1, index.end
    return [*spans, Span(number, first, videos, None)] if first < videos else spans


class Packer:
    """Packs what is not packed yet.

    Args:
        videos: All of them.
        folder: The packed set.
        encoding: How they are transcoded; None: their files go in as they are.
        limit: Most bytes of a shard.
        pool: Does the work.
        finished: Shards that are there.
    """

    def __init__(
        self, videos: Videos, folder: Path, encoding: Encoding | None, limit: int, pool: PackPool, finished: list[Index]
    ) -> None:
        self._videos, self._folder, self._encoding, self._pool = videos, folder, encoding, pool
        self._limit = limit
        self._spans = deque(unfinished(finished, len(videos)))
        self._todo = (video for span in tuple(self._spans) for video in range(span.first, span.end))
        self._ready: dict[int, Packed] = {}  # not in a shard yet, because one before is not ready
        self._entries: list[Entry] = []  # of the shard that fills
        self._size = self._busy = self._done = 0
        names = [path.stem for path in (folder / WORK).glob("*.json")]  # of an earlier run
        waiting = [int(name) for name in names if name.isdecimal()]
        self._total = sum(
            span.end - span.first - sum(span.first <= video < span.end for video in waiting) for span in self._spans
        )

    def run(self, show: Show, ahead: int) -> None:
        """Packs all that is left, with at most `ahead` tasks waiting or at work."""
        with show("packing", "videos") as on_progress:
            on_progress(0, self._total)
            self._hand_out(ahead)
            for task, result in self._pool.drain():
                self._busy -= 1
                if isinstance(result, Fault):
                    raise PackError(f"{self._folder}: {result.reason}; the same command goes on where this one stopped")
                match task, result:
                    case Transcode(video=video), Packed() as packed:
                        self._ready[video] = packed
                    case Transcode(video=video), Hung() | Crashed() as nothing:
                        self._ready[video] = Packed(no_result(nothing))
                    case Shard() as shard, Index():
                        for number in range(shard.first, shard.first + len(shard.entries)):
                            remove_work(self._folder, number)
                    case Shard() as shard, _:
                        raise PackError(
                            f"{self._folder}: the process that wrote shard {shard.number} ended ({result}), is memory "
                            "short? The same command goes on where this one stopped"
                        )
                if isinstance(task, Transcode if self._encoding else Shard):
                    self._done += 1 if isinstance(task, Transcode) else len(task.entries)
                    on_progress(self._done, self._total)
                self._hand_out(ahead)

    def _hand_out(self, ahead: int) -> None:
        while self._busy < ahead and (video := next(self._todo, None)) is not None:
            clip = self._videos.clip(video)
            if self._encoding is None:
                probe = Probe("", clip.frames, clip.fps, clip.width, clip.height, clip.codec)
                self._ready[video] = Packed(probe, clip.length)
            elif (packed := read_work(self._folder, video)) is not None:
                self._ready[video] = packed
            else:
                self._busy += 1
                self._pool.submit([Transcode(video, clip.uri, clip.frames, clip.fps)])
            self._fill()
        self._fill()

    def _fill(self) -> None:
        """Takes what is ready, as far as no video is missing before it."""
        while self._spans:
            span = self._spans[0]
            video = span.first + len(self._entries)
            if video == span.end:
                self._close()
                continue
            if video not in self._ready:
                return
            entry = self._entry(video, self._ready[video])
            if self._size and self._size + (size := room(entry)) > self._limit and size:
                self._close()
                continue
            del self._ready[video]
            self._entries.append(entry)
            self._size += room(entry)

    def _close(self) -> None:
        """Has the shard written that is full, and starts the next."""
        span = self._spans.popleft()
        end = span.first + len(self._entries)
        left = None if span.shards is None else span.shards - 1
        if left is not None and (left == 0) != (end == span.end):
            raise PackError(
                f"{self._folder}: videos {span.first} to {span.end} no longer fill the same shards as before; were "
                "they transcoded by other software, or was one hung? Pack into another folder"
            )
        if end < span.end:
            self._spans.appendleft(Span(span.number + 1, end, span.end, left))
        self._busy += 1
        self._pool.submit_first(Shard(span.number, span.first, self._entries))
        self._entries, self._size = [], 0

    def _entry(self, video: int, packed: Packed) -> Entry:
        clip = self._videos.clip(video)
        captions = [self._videos.manifest[int(row)].caption for row in self._videos.rows(video)]
        path, suffix = clip.uri, Path(clip.uri).suffix.lower()
        if self._encoding:
            path, suffix = str(work_path(self._folder, video)), ".mp4"
        elif not suffix[1:].isalnum() or suffix in _TEXTS or len(suffix.encode()) > _LONGEST_SUFFIX:
            suffix = ".video"
        return Entry(f"{video:09d}", path, suffix, clip.clip_id, captions, packed)
