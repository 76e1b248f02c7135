"""An annotation file opened just far enough to tell what it is, and what all its readers share.

Whatever makes the file as a whole doubtful ends in one AnnotationError; what concerns one row only (an empty caption)
is left to the caller, who lists it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, NoReturn

VIDEO_KEYS = ("path", "video", "file", "video_path", "filename", "video_id")
CAPTION_KEYS = ("caption", "text", "sentence")
VIDEO_EXTENSIONS = frozenset(
    ("mp4", "avi", "mkv", "webm", "mov", "m4v", "mpg", "mpeg", "wmv", "3gp", "3g2", "mts", "m2ts", "ts", "flv", "ogv")
)
_DELIMITERS = ",;\t"


class AnnotationError(ValueError):
    """The annotation file cannot be used; the message says what was found, what was expected and where."""


class Row(NamedTuple):
    """One caption of one video.

    video: the path or id as the file gives it; caption: without space around it; joined: sentences of the file that
    make it up; split: as the file says, or empty.
    """

    video: str
    caption: str
    joined: int = 1
    split: str = ""


def fail(path: Path, found: str, expected: str) -> NoReturn:
    raise AnnotationError(f"{path}: {found}; expected {expected}")


def short(value: object) -> str:
    """A value and its type, cut to the length of an error message."""
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"


def stem(video: str) -> str:
    """A video's path without a known video extension and without an empty one: a/b.mp4, a/b. and a/b are a/b."""
    name, dot, extension = video.rpartition(".")
    return name if dot and (not extension or extension.lower() in VIDEO_EXTENSIONS) else video


def checked_rows(path: Path, where: str, video: object, captions: object, split: str = "") -> Iterator[Row]:
    """Rows of one video; `captions`: a string or a list of strings (an empty list: one empty caption)."""
    if not isinstance(video, str) or not video.strip():
        fail(path, f"{where}: the video is {video!r}", "a path")
    for caption in (captions or [""]) if isinstance(captions, list) else [captions]:
        if not isinstance(caption, str):
            fail(path, f"{where}: the caption of {video!r} is {short(caption)}", "a string or a list of strings")
        for text in (video, caption):
            if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
                fail(path, f"{where}: {text!r} holds half a UTF-16 pair", "valid Unicode")
        yield Row(video, caption.strip(), split=split)


class Source:
    """A text file of annotations or of names.

    Attributes:
        path: Of the file.
        first: Its first line that is not blank, without its end.
        more: Whether text follows.

    Raises:
        AnnotationError: Empty or binary. OSError, UnicodeDecodeError: Unreadable, not UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            if b"\0" in file.read(1 << 16):
                fail(path, "is a binary file", "JSON, JSONL or CSV text; is this a video or an archive?")
        lines = self.lines()
        self.first = next((line for _, line in lines), "")
        self.more = next(lines, None) is not None
        if not self.first:
            fail(path, "is empty", "captions")

    def lines(self) -> Iterator[tuple[int, str]]:
        """(number from 1, line without its end) of every line that is not blank."""
        with self.path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\n")

    @cached_property
    def kind(self) -> str:
        """json (one value), jsonl (an object a line) or table (lines of cells)."""
        if self.first.lstrip()[0] not in "{[":
            return "table"
        if self.more:
            try:
                return "jsonl" if isinstance(json.loads(self.first), dict) else "json"
            except (ValueError, RecursionError):
                return "json"
        is_row = isinstance(self.value, dict) and not {*VIDEO_KEYS, *CAPTION_KEYS}.isdisjoint(self.value)
        return "jsonl" if is_row else "json"

    @cached_property
    def value(self) -> object:
        """The one JSON value of the file; AnnotationError where it is not valid or an object names a key twice."""

        def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
            table = dict(pairs)
            if len(table) < len(pairs):
                seen: set[str] = set()
                twice = next(key for key, _ in pairs if key in seen or seen.add(key))
                fail(
                    self.path,
                    f"names {twice!r} twice",
                    'each video once; give several captions as {"video": ["one", "two"]}',
                )
            return table

        try:
            return json.loads(self.path.read_text(encoding="utf-8-sig"), object_pairs_hook=no_duplicates)
        except AnnotationError:
            raise
        except (ValueError, RecursionError) as error:
            if isinstance(error, UnicodeDecodeError):
                raise
            fail(
                self.path,
                f"is not valid JSON ({error})",
                'one whole JSON value, such as {"video path": "caption", ...}',
            )

    @cached_property
    def entry(self) -> object:
        """The first element of a JSON list, the first value of a JSON object; None for all else."""
        if self.kind != "json" or not isinstance(self.value, dict | list):
            return None
        return next(iter(self.value.values() if isinstance(self.value, dict) else self.value), None)

    @cached_property
    def delimiter(self) -> str:
        """Of a table: the one that splits its first line most."""
        return max(_DELIMITERS, key=lambda delimiter: len(self._first_cells(delimiter)))

    @cached_property
    def header(self) -> list[str]:
        """The cells of a table's first line; empty for JSON."""
        return self._first_cells(self.delimiter) if self.kind == "table" else []

    def _first_cells(self, delimiter: str) -> list[str]:
        try:
            return next(csv.reader([self.first], delimiter=delimiter))
        except csv.Error as error:
            fail(self.path, f"starts with a line that is not CSV ({error})", "JSON, JSONL or CSV text")

    def cells(self, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        """(where, the cells of the named columns) of every row of a table below its header."""
        places = [self.header.index(name) for name in columns]
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            while not file.readline().strip():
                pass
            lines = csv.reader(file, delimiter=self.delimiter, strict=True)
            try:
                for cells in lines:
                    if not cells:
                        continue
                    if len(cells) != len(self.header):
                        fail(
                            self.path,
                            f"the row that ends {lines.line_num} lines below the header has {len(cells)} cells",
                            f"{len(self.header)} as the header; put captions that hold {self.delimiter!r} in double "
                            "quotes",
                        )
                    yield f"row {lines.line_num}", [cells[place] for place in places]
            except csv.Error as error:
                fail(
                    self.path,
                    f"is not valid CSV {lines.line_num} lines below the header ({error})",
                    "quoted cells closed",
                )
