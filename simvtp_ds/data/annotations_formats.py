"""The table of annotation formats, and which of them a file is of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from simvtp_ds.data import annotations_official as official
from simvtp_ds.data.annotations_generic import is_json, read_csv, read_json, read_jsonl
from simvtp_ds.data.annotations_source import Row, Source, fail, short


@dataclass(frozen=True)
class Reader:
    """One annotation format.

    Attributes:
        shape: What such a file looks like, for messages.
        accepts: Whether a file looks like it.
        read: Its rows; AnnotationError at the first entry that does not fit.
        places: Video as the rows name it -> paths where it may lie, the likeliest first.
        published: (videos, captions) -> the published file of that size. Of these figures, only those of files in
            tests/unit/test_official_annotations.py were counted; the others are the data sets' own statements.
    """

    shape: str
    accepts: Callable[[Source], bool]
    read: Callable[[Source], Iterator[Row]]
    places: Callable[[str], tuple[str, ...]] = lambda video: (video,)
    published: Mapping[tuple[int, int], str] = field(default_factory=dict)


READERS: dict[str, Reader] = {  # "auto" takes the first that accepts: official files before the generic ones
    "msrvtt-1ka": Reader(
        "CSV, header key,vid_key,video_id,sentence",
        official.is_jsfusion,
        official.read_jsfusion,
        published={(1000, 1000): "MSR-VTT 1k-A"},
    ),
    "msrvtt": Reader(
        '{"videos": [{"video_id", "split"}], "sentences": [{"video_id", "caption"}]}',
        official.is_msrvtt,
        official.read_msrvtt,
        published={
            (10000, 200000): "MSR-VTT, all",
            (7010, 140200): "MSR-VTT train + validate",
            (2990, 59800): "MSR-VTT test",
        },
    ),
    "msrvtt-captions": Reader(
        '[{"video", "caption": [strings]}]',
        official.is_captions,
        official.read_captions,
        published={(2990, 59800): "MSR-VTT test"},
    ),
    "msvd": Reader(
        '{"<id>_<start>_<end>": [captions]}', official.is_msvd, read_json, published={(1970, 80827): "MSVD, all"}
    ),
    "activitynet": Reader(
        '{"v_<id>": {"duration", "timestamps", "sentences"}}',
        official.is_activitynet,
        official.read_activitynet,
        published={
            (10009, 37421): "ActivityNet Captions train",
            (4917, 17505): "ActivityNet Captions val_1",
            (4885, 17031): "ActivityNet Captions val_2",
        },
    ),
    "didemo": Reader(
        '[{"video", "description", ...}]',
        official.is_didemo,
        official.read_didemo,
        published={(8395, 33005): "DiDeMo train", (1065, 4180): "DiDeMo val", (1004, 4021): "DiDeMo test"},
    ),
    "lsmdc": Reader(
        "6 columns between tabs, no header: clip id, four times, caption",
        official.is_lsmdc,
        official.read_lsmdc,
        official.lsmdc_places,
    ),
    "vatex": Reader(
        '[{"videoID", "enCap": [strings]}]',
        official.is_vatex,
        official.read_vatex,
        published={(25991, 259910): "VATEX train", (3000, 30000): "VATEX val", (6000, 60000): "VATEX public test"},
    ),
    "webvid": Reader(
        "CSV, header videoid,name,page_idx,page_dir,duration,contentUrl",
        official.is_webvid,
        official.read_webvid,
        official.webvid_places,
    ),
    "jsonl": Reader('lines of {"video": "...", "caption": "..."}', lambda source: source.kind == "jsonl", read_jsonl),
    "json": Reader(
        '{"video path": "caption" or ["caption", ...]}',
        is_json,
        read_json,
    ),
    "csv": Reader("a header with a video and a caption column", lambda source: source.kind == "table", read_csv),
}


def choose_format(source: Source, asked: str) -> str:
    """The key of READERS to read the file by: `asked`, or by its content where that is "auto".

    Raises:
        AnnotationError: No or another format.
    """
    if source.kind == "json" and source.value in ([], {}):
        fail(source.path, "holds no rows", "at least one video with a caption (json)")
    if asked != "auto" and READERS[asked].accepts(source):
        return asked
    found = next((name for name, reader in READERS.items() if reader.accepts(source)), None)
    if asked != "auto":
        what = f"looks like {found} ({READERS[found].shape})" if found else _looks(source)
        way = f"; leave --format out or give --format {found}" if found else ""
        fail(source.path, what, f"{asked} ({READERS[asked].shape}){way}")
    if not found:
        fail(source.path, _looks(source), f"one of the formats {', '.join(READERS)} (docs/annotations.md shows each)")
    return found


def _looks(source: Source) -> str:
    found = f"holds a JSON {type(source.value).__name__}"
    if source.entry is None:
        return found
    key = f"{next(iter(source.value))!r}: " if isinstance(source.value, dict) else ""
    return f"{found}, its first entry {key}{short(source.entry)}"


def published_as(name: str, rows: list[Row]) -> str:
    """Whether all rows of a file are as many as a published file of the format `name` has; see `Annotations`."""
    known = READERS[name].published
    if not known:
        return ""
    counts = len({row.video for row in rows}), sum(row.joined for row in rows)
    if counts in known:
        return f"as published: {known[counts]}"
    sizes = "; ".join(f"{file}: {videos} videos, {captions} captions" for (videos, captions), file in known.items())
    return f"not of a published size ({sizes})"
