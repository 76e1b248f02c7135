"""Annotation files in: what each file says, as rows of (video, caption), in the file's order.

A format is one entry of READERS. Whatever makes the file as a whole doubtful ends in one AnnotationError; what concerns
one row only (an empty caption) is left to the caller, who lists it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

VIDEO_KEYS = ("path", "video", "file", "video_path", "filename")
CAPTION_KEYS = ("caption", "text", "sentence")
_DELIMITERS = ",;\t"


class AnnotationError(ValueError):
    """The annotation file cannot be used; the message says what was found, what was expected and where."""


class Row(NamedTuple):
    """One caption of one video. `video` is the path as the file gives it; `caption` has no space around it."""

    video: str
    caption: str


@dataclass(frozen=True)
class Reader:
    """One annotation format.

    Attributes:
        accepts: (first line, stripped; whether more text follows) -> whether the file is of this format.
        read: Path -> rows.
    """

    accepts: Callable[[str, bool], bool]
    read: Callable[[Path], Iterator[Row]]


def read_annotations(path: str | Path, format: str = "auto") -> list[Row]:
    """All rows of an annotation file, in its order; one row a caption.

    Args:
        path: JSON {"video path": "caption" or ["caption", ...]}, JSONL or CSV (keys: VIDEO_KEYS and CAPTION_KEYS).
        format: A key of READERS, or "auto": decided by the first line of the file.

    Raises:
        AnnotationError: No such file, empty, not text, not of this format, or without a single row.
    """
    path = Path(path)
    if format not in ("auto", *READERS):
        raise AnnotationError(f"{path}: unknown format {format!r}; expected auto or one of {', '.join(READERS)}")
    try:
        first, more = _first_line(path)
        if not first:
            _fail(path, "is empty", "captions")
        name = format if format != "auto" else next(k for k, reader in READERS.items() if reader.accepts(first, more))
        rows = list(READERS[name].read(path))
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror}); expected an annotation file") from None
    except UnicodeDecodeError as error:
        _fail(path, f"is not UTF-8 text (byte {error.start})", "captions as text; save it as UTF-8")
    if not rows:
        _fail(path, "holds no rows", f"at least one video with a caption ({name})")
    return rows


def _first_line(path: Path) -> tuple[str, bool]:
    """The first line that is not blank, stripped, and whether there is text after it."""
    with path.open("rb") as file:
        if b"\0" in file.read(1 << 16):
            _fail(path, "is a binary file", "JSON, JSONL or CSV text; is this a video or an archive?")
    with path.open(encoding="utf-8-sig") as file:
        first = next((line.strip() for line in file if line.strip()), "")
        return first, any(line.strip() for line in file)


def _fail(path: Path, found: str, expected: str) -> NoReturn:
    raise AnnotationError(f"{path}: {found}; expected {expected}")


def _checked(path: Path, where: str, video: object, captions: object) -> Iterator[Row]:
    """Rows of one video; `captions`: a string or a list of strings (an empty list: one empty caption)."""
    if not isinstance(video, str) or not video.strip():
        _fail(path, f"{where}: the video is {video!r}", "a path")
    for caption in (captions or [""]) if isinstance(captions, list) else [captions]:
        if not isinstance(caption, str):
            _fail(path, f"{where}: the caption of {video!r} is {_short(caption)}", "a string or a list of strings")
        for text in (video, caption):
            if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
                _fail(path, f"{where}: {text!r} holds half a UTF-16 pair", "valid Unicode")
        yield Row(video, caption.strip())


def _short(value: object) -> str:
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"


def _read_json(path: Path) -> Iterator[Row]:
    """{"video path": "caption" or ["caption", ...]}: the authors' format."""

    def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(pairs)
        if len(table) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            _fail(path, f"names {twice!r} twice", 'each video once; give several captions as {"video": ["one", "two"]}')
        return table

    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=no_duplicates)
    except AnnotationError:
        raise
    except (ValueError, RecursionError) as error:
        _fail(path, f"is not valid JSON ({error})", 'one object {"video path": "caption", ...}')
    if not isinstance(table, dict):
        _fail(path, f"holds a JSON {type(table).__name__}", 'an object {"video path": "caption", ...}')
    for video, captions in table.items():
        yield from _checked(path, "JSON", video, captions)


def _read_jsonl(path: Path) -> Iterator[Row]:
    """One object a line with a video key and a caption key; other keys are left alone."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                _fail(path, f"line {number} is not valid JSON ({error})", "one JSON object a line")
            if not isinstance(entry, dict):
                _fail(path, f"line {number} holds {_short(entry)}", "one JSON object a line")
            video, caption = _columns(path, f"line {number}", list(entry))
            yield from _checked(path, f"line {number}", entry[video], entry[caption])


def _read_csv(path: Path) -> Iterator[Row]:
    """A header with a video column and a caption column; the delimiter is the one that splits it most."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        while not header.strip():
            header = file.readline()
        delimiter = max(_DELIMITERS, key=lambda d: len(next(csv.reader([header], delimiter=d))))
        names = next(csv.reader([header], delimiter=delimiter))
        video, caption = (names.index(name) for name in _columns(path, "CSV header", names))
        lines = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(names):
                    _fail(
                        path,
                        f"the row that ends {lines.line_num} lines below the header has {len(cells)} cells",
                        f"{len(names)} as the header; put captions that hold {delimiter!r} in double quotes",
                    )
                yield from _checked(path, f"row {lines.line_num}", cells[video], cells[caption])
        except csv.Error as error:
            _fail(path, f"is not valid CSV {lines.line_num} lines below the header ({error})", "quoted cells closed")


def _columns(path: Path, where: str, names: list[str]) -> tuple[str, str]:
    """The names, as written, of the video and the caption column."""
    plain = {name.strip().lower(): name for name in reversed(names)}
    video = next((plain[key] for key in VIDEO_KEYS if key in plain), None)
    caption = next((plain[key] for key in CAPTION_KEYS if key in plain), None)
    if video is None or caption is None:
        found = ", ".join(names)[:200]
        _fail(
            path,
            f"{where}: no {'video' if video is None else 'caption'} among the names found ({found})",
            f"one of {', '.join(VIDEO_KEYS if video is None else CAPTION_KEYS)}",
        )
    return video, caption


def _is_jsonl(first: str, more: bool) -> bool:
    """A whole object on the first line, followed by others or itself a row."""
    try:
        entry = json.loads(first)
    except (ValueError, RecursionError):
        return False
    if not isinstance(entry, dict):
        return False
    return more or not (set(VIDEO_KEYS).isdisjoint(entry) or set(CAPTION_KEYS).isdisjoint(entry))


READERS: dict[str, Reader] = {  # "auto" takes the first that accepts; csv stands last because it accepts anything
    "jsonl": Reader(_is_jsonl, _read_jsonl),
    "json": Reader(lambda first, more: first[0] in "{[", _read_json),
    "csv": Reader(lambda first, more: True, _read_csv),
}
