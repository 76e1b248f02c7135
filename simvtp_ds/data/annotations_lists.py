"""Lists of videos, such as the data sets' train and test lists: reading one, and keeping what it names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from posixpath import normpath

from simvtp_ds.data.annotations_source import VIDEO_KEYS, Row, Source, fail, stem


def listed(source: Source) -> list[str]:
    """The names if the file is a list: one column, its header a video key if it has one, no space within; else []."""
    if source.kind != "table" or len(source.header) > 1:
        return []
    names = []
    for _, line in source.lines():
        name = line.strip()
        if any(mark in name for mark in " ,;\t"):
            return []
        names.append(name)
    return names[_headed(source) :]


def read_list(path: Path) -> list[str]:
    """Names of videos, one a line; or the video column of a CSV.

    Raises:
        AnnotationError: JSON, or without a name. OSError, UnicodeDecodeError.
    """
    source = Source(path)
    if source.kind != "table":
        fail(path, f"is {source.kind.upper()}", "a list: one video a line, or a CSV with a column video_id")
    column = next((name for name in source.header if name.strip().lower() in VIDEO_KEYS), None)
    if column is not None and len(source.header) > 1:
        names = [name.strip() for _, (name,) in source.cells([column])]
    else:
        names = [line.strip() for _, line in source.lines()][_headed(source) :]
    if not any(names):
        fail(path, "names no video", "one a line")
    return list(dict.fromkeys(name for name in names if name))


def keep_listed(rows: list[Row], names: list[str]) -> tuple[list[Row], list[str]]:
    """(the rows of the named videos, the names that no row has).

    A name and a video are the same where they agree but for the extension and for folders that only one of them has:
    test/video7010.mp4 is video7010.
    """
    whole: dict[str, list[str]] = {}
    parts: dict[str, list[str]] = {}
    for name in names:
        key = _key(name)
        whole.setdefault(key, []).append(name)
        for tail in _tails(key):
            parts.setdefault(tail, []).append(name)
    found: set[str] = set()
    wanted: dict[str, bool] = {}
    for video in dict.fromkeys(row.video for row in rows):
        key = _key(video)
        same = [*parts.get(key, ()), *(name for tail in _tails(key) for name in whole.get(tail, ()))]
        wanted[video] = bool(same)
        found.update(same)
    return [row for row in rows if wanted[row.video]], [name for name in names if name not in found]


def shown(names: Iterable[str], count: int) -> str:
    """The first three of `count` names, for a message."""
    some = [name for name, _ in zip(names, range(3), strict=False)]
    return ", ".join(some) + (", ..." if count > len(some) else "")


def _headed(source: Source) -> bool:
    return source.first.strip().strip('"').lower() in VIDEO_KEYS


def _key(video: str) -> str:
    return stem(normpath(video.strip().replace("\\", "/"))).lstrip("/")


def _tails(key: str) -> Iterator[str]:
    """a/b/c, b/c, c."""
    while key:
        yield key
        key = key.partition("/")[2]
