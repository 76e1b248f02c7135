"""Annotation files in: what each file says, as rows of (video, caption), in the file's order.

Which format a file is of follows from its content (docs/annotations.md has the table).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from simvtp_ds.data.annotations_formats import READERS, choose_format, published_as
from simvtp_ds.data.annotations_lists import keep_listed, listed, read_list, shown
from simvtp_ds.data.annotations_source import AnnotationError, Row, Source, fail

SPLITS = ("train", "val", "validate", "test")


@dataclass(frozen=True)
class Annotations:
    """What an annotation file says.

    Attributes:
        format: A key of READERS.
        rows: One a caption, in the file's order; only those of the split and list asked for.
        published: The published file that the whole file agrees with by its counts; else how it differs; empty: no
            counts are known for the format.
        not_annotated: Names of the list that the file (its split) has no caption for.
    """

    format: str
    rows: list[Row]
    published: str = ""
    not_annotated: list[str] = field(default_factory=list)


def read_annotations(path: str | Path, format: str = "auto", split: str = "", names: str | Path = "") -> Annotations:
    """All rows of an annotation file, in its order; one row a caption.

    Args:
        path: A file of one of the formats READERS.
        format: A key of READERS, or "auto": decided by the file's content.
        split: One of SPLITS: only its videos, for files that give every video's split.
        names: A list of videos: only those.

    Raises:
        AnnotationError: No such file, empty, not text, not of this format, a list, or without a single row left.
    """
    path = Path(path)
    if format not in ("auto", *READERS):
        raise AnnotationError(f"{path}: unknown format {format!r}; expected auto or one of {', '.join(READERS)}")
    file = path
    try:
        source = Source(path)
        _refuse_list(source)
        name = choose_format(source, format)
        rows = list(READERS[name].read(source))
        if not rows:
            fail(path, "holds no rows", f"at least one video with a caption ({name})")
        published = published_as(name, rows)
        if split:
            rows = _of_split(path, name, rows, split)
        if not names:
            return Annotations(name, rows, published)
        file = Path(names)
        wanted = read_list(file)
    except OSError as error:
        kind = "an annotation file" if file is path else "a list of videos"
        raise AnnotationError(f"{file}: cannot be read ({error.strerror}); expected {kind}") from None
    except UnicodeDecodeError as error:
        fail(file, f"is not UTF-8 text (byte {error.start})", "text; save it as UTF-8")
    kept, missing = keep_listed(rows, wanted)
    if not kept:
        videos = dict.fromkeys(row.video for row in rows)
        fail(
            file,
            f"none of its {len(wanted)} videos ({shown(wanted, len(wanted))}) has a caption in {path} "
            f"({shown(videos, len(videos))})",
            "a list of the same data set" + (f"'s {split} split" if split else ""),
        )
    return Annotations(name, kept, published, missing)


def _refuse_list(source: Source) -> None:
    names = listed(source)
    if names:
        fail(
            source.path,
            f"is a list that names {len(set(names))} videos ({shown(names, len(names))}) without captions",
            "the annotations; name them and give this file as the list of those to keep: "
            f"prepare.py ANNOTATIONS --list {source.path}",
        )


def _of_split(path: Path, name: str, rows: list[Row], split: str) -> list[Row]:
    found = dict.fromkeys(row.split for row in rows if row.split)
    if not found:
        fail(path, f"{name} does not say which split a video is in", "--list FILE in place of --split")
    same = ("validate", "val") if split in ("validate", "val") else (split,)
    kept = [row for row in rows if row.split in same]
    if not kept:
        fail(path, f"has no video in the split {split!r}", f"one of {', '.join(found)}")
    return kept
