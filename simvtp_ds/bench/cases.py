"""The clips that a bench reads: the same files, frames and boxes for every reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc

from simvtp_ds.data.manifest import Clip, Manifest
from simvtp_ds.data.order import stream
from simvtp_ds.data.sampling import View, random_view
from simvtp_ds.data_config import DataConfig


class BenchError(RuntimeError):
    """The bench cannot run; the message says why and what to do."""


def report_or_error(make: Callable[[], dict], table: Callable[[dict], str], *errors: type[Exception]) -> None:
    """How a bench ends: its table and a JSON line, or one line that says what is wrong and exit code 1."""
    try:
        report = make()
    except errors as error:
        raise SystemExit(f"error: {error}") from None
    print(table(report))
    print(json.dumps(report))


class Case(NamedTuple):
    """A video and what to show of it."""

    clip: Clip
    view: View


@dataclass(frozen=True)
class FileSet:
    """Clips that are timed together. `original`: name of the set that this one was packed from, else empty."""

    name: str
    cases: tuple[Case, ...]
    original: str = ""


def draw_clips(folder: str | Path, count: int) -> list[Clip]:
    """At most `count` videos of a prepared folder, drawn without repetition, always the same ones.

    Raises:
        ManifestError: There is no manifest.
    """
    manifest = Manifest.open(folder)
    rows = stream(0, 0, "bench", "clips").permutation(len(manifest))
    found: dict[str, Clip] = {}
    for row in rows:
        clip = manifest[int(row)]
        found.setdefault(clip.clip_id, clip)
        if len(found) == count:
            break
    return list(found.values())


def same_clips(folder: str | Path, clips: Sequence[Clip]) -> list[Clip]:
    """The same videos from the manifest of a packed set.

    Raises:
        BenchError: One of them is not in it.
        ManifestError: There is no manifest.
    """
    manifest = Manifest.open(folder)
    ids = manifest.column("clip_id")
    rows = [pc.index(ids, clip.clip_id).as_py() for clip in clips]
    if -1 in rows:
        raise BenchError(
            f"{folder}: does not hold {clips[rows.index(-1)].clip_id}; give the set packed from --manifest"
        )
    return [manifest[row] for row in rows]


def file_set(name: str, clips: Sequence[Clip], data: DataConfig, original: str = "") -> FileSet:
    """Each clip with the view that training draws for it in epoch 0."""
    return FileSet(name, tuple(Case(clip, random_view(data, 0, 0, clip)) for clip in clips), original)
