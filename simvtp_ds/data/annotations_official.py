"""Readers of the data sets' own annotation files: one function a schema, and how the schema is recognised.

Recognition looks at the header or the first entry only, never at the file's name. A reader then checks every entry.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from simvtp_ds.data.annotations_source import Row, Source, checked_rows, fail, short, stem

_JSFUSION = ("key", "vid_key", "video_id", "sentence")
_WEBVID = ("videoid", "page_dir", "name")
_MSVD_NAME = re.compile(r".{11}_\d+_\d+")  # YouTube id, first and last second
_LSMDC_TIME = re.compile(r"\d+([.:]\d+)*")
_LSMDC_CELLS = 6


def _first(source: Source, container: type) -> object:
    """The first entry of a JSON file that is a list, or an object (container dict); else None."""
    return source.entry if source.kind == "json" and isinstance(source.value, container) else None


def _has(entry: object, *keys: str) -> bool:
    return isinstance(entry, dict) and entry.keys() >= set(keys)


def is_jsfusion(source: Source) -> bool:
    return sorted(source.header) == sorted(_JSFUSION)


def read_jsfusion(source: Source) -> Iterator[Row]:
    """MSRVTT_JSFUSION_test.csv, the 1k-A test split: one caption for each of 1000 videos."""
    rows: list[Row] = []
    for where, (video, caption) in source.cells(("video_id", "sentence")):
        rows += checked_rows(source.path, where, video, caption)
    videos = Counter(row.video for row in rows)
    way_out = "; is the file whole? To use it all the same, as it is: --format csv"
    if len(rows) != 1000:
        fail(source.path, f"holds {len(rows)} rows under the header of MSR-VTT 1k-A", f"1000{way_out}")
    if len(videos) != len(rows):
        video, count = videos.most_common(1)[0]
        fail(source.path, f"names {video!r} {count} times", f"1000 videos with one caption each (1k-A){way_out}")
    return iter(rows)


def is_msrvtt(source: Source) -> bool:
    return source.kind == "json" and _has(source.value, "videos", "sentences")


def read_msrvtt(source: Source) -> Iterator[Row]:
    """MSRVTT_data.json: {"videos": [{video_id, split, ...}], "sentences": [{video_id, caption, ...}]}."""
    assert isinstance(source.value, dict)
    tables = [source.value[name] for name in ("videos", "sentences")]
    if not all(isinstance(table, list) for table in tables):
        fail(source.path, f"holds {short(tables[0])} and {short(tables[1])}", "two lists, videos and sentences")
    splits = {}
    for where, entry in _entries(source, tables[0], "video", "video_id"):
        if not isinstance(entry["video_id"], str) or not isinstance(entry.get("split", ""), str):
            fail(source.path, f"{where}: video_id or split is not text in {short(entry)}", "strings")
        splits[entry["video_id"]] = entry.get("split", "")
    for where, entry in _entries(source, tables[1], "sentence", "video_id", "caption"):
        video = entry["video_id"]
        if not isinstance(video, str) or video not in splits:
            fail(source.path, f"{where} belongs to {video!r}", "one of the file's own videos")
        yield from checked_rows(source.path, where, video, entry["caption"], splits[video])


def is_captions(source: Source) -> bool:
    return _has(_first(source, list), "video", "caption")


def read_captions(source: Source) -> Iterator[Row]:
    """[{"video": "video7010.mp4", "caption": [20 strings]}]."""
    for where, entry in _entries(source, source.value, "entry", "video", "caption"):
        yield from checked_rows(source.path, where, entry["video"], entry["caption"])


def is_msvd(source: Source) -> bool:
    if not isinstance(_first(source, dict), list) or not isinstance(source.value, dict):
        return False
    return _MSVD_NAME.fullmatch(stem(next(iter(source.value)))) is not None


def is_activitynet(source: Source) -> bool:
    return _has(_first(source, dict), "timestamps", "sentences")


def read_activitynet(source: Source) -> Iterator[Row]:
    """{"v_id": {"duration", "timestamps", "sentences"}}: the sentences of a video, joined to a paragraph.

    Time spans, some of them inverted, play no part in it.
    """
    assert isinstance(source.value, dict)
    for video, entry in source.value.items():
        if not _has(entry, "sentences"):
            fail(source.path, f"{video!r} holds {short(entry)}", "an object with sentences")
        yield _paragraph(video, list(checked_rows(source.path, repr(video), video, entry["sentences"])))


def is_didemo(source: Source) -> bool:
    return _has(_first(source, list), "video", "description")


def read_didemo(source: Source) -> Iterator[Row]:
    """[{"video", "description", ...}]: all descriptions of a video, in file order, joined to a paragraph.

    One Flickr video goes under several extensions (x.mov and x.mp4, x. and x.mp4): it is one video, under the first of
    its names. So counted, the test file has the 1004 videos that are reported on.
    """
    videos: dict[str, list[Row]] = {}
    for where, entry in _entries(source, source.value, "entry", "video", "description"):
        rows = checked_rows(source.path, where, entry["video"], entry["description"])
        for row in rows:
            videos.setdefault(stem(row.video), []).append(row)
    for rows in videos.values():
        yield _paragraph(rows[0].video, rows)


def is_lsmdc(source: Source) -> bool:
    cells = source.first.split("\t")
    return len(cells) == _LSMDC_CELLS and all(_LSMDC_TIME.fullmatch(cell.strip()) for cell in cells[1:5])


def read_lsmdc(source: Source) -> Iterator[Row]:
    """Tabs between clip id, four times and the caption; no header, and quotes mean nothing."""
    for number, line in source.lines():
        cells = line.split("\t")
        if len(cells) != _LSMDC_CELLS:
            fail(source.path, f"line {number} has {len(cells)} cells between tabs", "6: clip id, four times, caption")
        yield from checked_rows(source.path, f"line {number}", cells[0], cells[5])


def lsmdc_places(video: str) -> tuple[str, ...]:
    """The release keeps a folder a movie: 0001_American_Beauty/0001_American_Beauty_00.00.51.926-00.00.54.129."""
    movie = re.sub(r"_\d\d\.\d\d\.\d\d\.\d+-\d\d\.\d\d\.\d\d\.\d+$", "", stem(video))
    return video, f"{movie}/{video}"


def is_vatex(source: Source) -> bool:
    return _has(_first(source, list), "videoID", "enCap")


def read_vatex(source: Source) -> Iterator[Row]:
    """[{"videoID", "enCap": [10 strings], ...}]; the Chinese captions are left alone."""
    for where, entry in _entries(source, source.value, "entry", "videoID", "enCap"):
        yield from checked_rows(source.path, where, entry["videoID"], entry["enCap"])


def is_webvid(source: Source) -> bool:
    return set(_WEBVID) <= set(source.header)


def read_webvid(source: Source) -> Iterator[Row]:
    """CSV of videoid, name (the caption), page_dir: the video is page_dir/videoid.mp4."""
    for where, (video, folder, caption) in source.cells(_WEBVID):
        if not video.strip():
            fail(source.path, f"{where}: the videoid is {video!r}", "an id")
        path = f"{folder.strip()}/{video.strip()}.mp4".lstrip("/")
        yield from checked_rows(source.path, where, path, caption)


def webvid_places(video: str) -> tuple[str, ...]:
    """The release tool writes videos/page_dir/videoid.mp4."""
    return f"videos/{video}", video


def _entries(source: Source, table: object, name: str, *keys: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    """(where, entry) of a JSON list of objects that have these keys."""
    assert isinstance(table, list)
    for number, entry in enumerate(table, 1):
        if not isinstance(entry, dict) or not _has(entry, *keys):
            fail(source.path, f"{name} {number} is {short(entry)}", f"an object with {' and '.join(keys)}")
        yield f"{name} {number}", entry


def _paragraph(video: str, rows: list[Row]) -> Row:
    return Row(video, " ".join(row.caption for row in rows if row.caption), joined=len(rows))
