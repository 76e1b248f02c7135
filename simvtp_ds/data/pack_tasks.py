"""What the processes of packing do: transcode one video, write one shard, check one shard."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import av.logging

from simvtp_ds.data.pool import Pool
from simvtp_ds.data.probe import Probe, probe_file
from simvtp_ds.data.shards import Index, Packed, Shard, check_mounted, loads_packed, write_shard
from simvtp_ds.data.transcode import Encoding, transcode
from simvtp_ds.files import sha256

WORK = "work"  # folder of transcoded videos that are in no shard yet


class Transcode(NamedTuple):
    """A video to transcode: its number, file, usable frames and average rate."""

    video: int
    path: str
    frames: int
    fps: float


class Check(NamedTuple):
    """A finished shard to read once more."""

    index: Index


class Fault(NamedTuple):
    """Why nothing more can be written."""

    reason: str


Task: TypeAlias = Transcode | Shard | Check
Result: TypeAlias = Packed | Index | bool | Fault  # of Transcode, Shard, Check; Fault of all


class PackPool(Pool[Task, Result]):
    """Packing processes.

    Args:
        workers: Processes.
        folder: The packed set.
        encoding: How videos are transcoded (None: no task asks for it).
        timeout: Seconds that transcoding one video may take; writing and checking take as long as the disk does.
    """

    def __init__(self, workers: int, folder: Path, encoding: Encoding | None, timeout: float) -> None:
        super().__init__("packing", workers, partial(_start, folder, encoding), timeout, needs="av")

    def limit(self, task: Task) -> float:
        """Seconds that the task may take."""
        return super().limit(task) if isinstance(task, Transcode) else float("inf")


def work_path(folder: Path, video: int) -> Path:
    """Where a transcoded video waits for its shard; what became of it lies beside it, with `.json`."""
    return folder / WORK / f"{video:09d}.mp4"


def read_work(folder: Path, video: int) -> Packed | None:
    """What an earlier run made of a video; None where that is not there as a whole."""
    path = work_path(folder, video)
    try:
        packed = loads_packed(path.with_suffix(".json").read_text())
        whole = packed.probe.reason or path.stat().st_size == packed.length
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return packed if whole else None


def remove_work(folder: Path, video: int) -> None:
    """Its shard is finished, with or without it."""
    path = work_path(folder, video)
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)


def _start(folder: Path, encoding: Encoding | None) -> Callable[[Task], Result]:
    """In the process: FFmpeg's messages off, since each fault ends in a reason."""
    av.logging.set_level(None)
    return partial(_work, folder, encoding)


def _work(folder: Path, encoding: Encoding | None, task: Task) -> Result:
    try:
        match task:
            case Shard():
                return write_shard(folder, task)
            case Check(index):
                return sha256(folder / index.uri) == index.sha256
            case Transcode():
                assert encoding is not None
                return _transcode(folder, encoding, task)
    except OSError as error:
        return Fault(str(error))


def _transcode(folder: Path, encoding: Encoding, task: Transcode) -> Packed:
    """Transcodes, writes, and looks at what is on disk as `prepare` looks at any file.

    Raises:
        OSError: The folder cannot be written, or that of the video is gone. What is wrong with the video itself is told
            in the result.
    """
    path = work_path(folder, task.video)
    try:
        content = transcode(task.path, task.frames, task.fps, encoding)
    except Exception as error:  # whatever a library raises on odd bytes: this video is refused, the others go on
        check_mounted(task.path)
        packed = Packed(Probe(f"not transcoded: {error or type(error).__name__}"))
    else:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        probe = probe_file(str(path))
        if not (probe.reason or encoding.frames_per_second or probe.frames == task.frames):
            probe = Probe(f"not transcoded: {probe.frames} of {task.frames} frames come back")
        packed = Packed(probe, len(content), hashlib.sha256(content).hexdigest())
    path.with_suffix(".json").write_text(json.dumps(asdict(packed)))  # torn by a kill: read as missing
    return packed
