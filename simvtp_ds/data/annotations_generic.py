"""Readers of one's own captions: the authors' JSON, JSONL, and CSV with named columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from simvtp_ds.data.annotations_source import CAPTION_KEYS, VIDEO_KEYS, Row, Source, checked_rows, fail, short


def is_json(source: Source) -> bool:
    """One object whose first value is not itself an object."""
    return source.kind == "json" and isinstance(source.value, dict) and not isinstance(source.entry, dict)


def read_json(source: Source) -> Iterator[Row]:
    """{"video path": "caption" or ["caption", ...]}: the authors' format."""
    assert isinstance(source.value, dict)
    for video, captions in source.value.items():
        yield from checked_rows(source.path, "JSON", video, captions)


def read_jsonl(source: Source) -> Iterator[Row]:
    """One object a line with a video key and a caption key; other keys are left alone."""
    for number, line in source.lines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            fail(source.path, f"line {number} is not valid JSON ({error})", "one JSON object a line")
        if not isinstance(entry, dict):
            fail(source.path, f"line {number} holds {short(entry)}", "one JSON object a line")
        video, caption = _columns(source.path, f"line {number}", list(entry))
        yield from checked_rows(source.path, f"line {number}", entry[video], entry[caption])


def read_csv(source: Source) -> Iterator[Row]:
    """A header with a video column and a caption column."""
    names = _columns(source.path, "CSV header", source.header)
    for where, (video, caption) in source.cells(names):
        yield from checked_rows(source.path, where, video, caption)


def _columns(path: Path, where: str, names: Sequence[str]) -> tuple[str, str]:
    """The names, as written, of the video and the caption column."""
    plain = {name.strip().lower(): name for name in reversed(names)}
    video = next((plain[key] for key in VIDEO_KEYS if key in plain), None)
    caption = next((plain[key] for key in CAPTION_KEYS if key in plain), None)
    if video is None or caption is None:
        fail(
            path,
            f"{where}: no {'video' if video is None else 'caption'} among the names found ({', '.join(names)[:200]})",
            f"one of {', '.join(VIDEO_KEYS if video is None else CAPTION_KEYS)}",
        )
    return video, caption
