"""Annotation files: what is read, what is refused, and whether the message helps."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from simvtp_ds.data.annotations import AnnotationError, Row
from simvtp_ds.data.annotations import read_annotations as read

ROWS = [Row("a/1.mp4", "a dog, running"), Row("2.mp4", 'she says "hi"; he waves'), Row("ü.mp4", "naïve 犬")]


def read_annotations(path: Path, format: str = "auto") -> list[Row]:
    return read(path, format).rows


def _write(folder: Path, text: str | bytes, name: str = "captions") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("indent", [None, 2])
def test_the_authors_json_gives_a_row_a_caption_in_file_order(tmp_path, indent):
    path = _write(tmp_path, json.dumps({row.video: row.caption for row in ROWS}, indent=indent))
    assert read_annotations(path) == ROWS
    assert read_annotations(path, "json") == ROWS


def test_a_list_of_captions_gives_a_row_each(tmp_path):
    path = _write(tmp_path, '{"a.mp4": ["one", " two "], "b.mp4": "three", "c.mp4": []}')
    assert read_annotations(path) == [Row("a.mp4", "one"), Row("a.mp4", "two"), Row("b.mp4", "three"), Row("c.mp4", "")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_is_read_with_any_delimiter_line_end_and_byte_order_mark(tmp_path, delimiter, end, mark):
    path = tmp_path / "captions.csv"
    with path.open("w", newline="") as file:
        file.write(mark)
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
        writer.writerows(
            [["key", "Sentence", "video_path"], *([i, row.caption, row.video] for i, row in enumerate(ROWS))]
        )
    assert read_annotations(path) == ROWS


@pytest.mark.parametrize("count", [1, 3])
def test_jsonl_is_told_from_json_even_with_one_line(tmp_path, count):
    lines = [json.dumps({"text": row.caption, "file": row.video, "fps": 25}) for row in ROWS[:count]]
    assert read_annotations(_write(tmp_path, "\n".join(lines))) == ROWS[:count]


def test_an_empty_caption_is_a_row_with_an_empty_caption(tmp_path):
    assert read_annotations(_write(tmp_path, "file,caption\na.mp4,  \n")) == [Row("a.mp4", "")]


def test_the_shared_clips_are_read(shared):
    path = shared / "data/clips/clips.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert read_annotations(path) == [Row(entry["file"], entry["caption"].strip()) for entry in entries]


def test_columns_of_other_names_choose_video_and_caption_by_rank(tmp_path):
    path = _write(tmp_path, "key,vid_key,video_id,sentence,split\nret0,msr1,video1, a dog ,x\n")
    assert read(path).format == "csv"
    assert read_annotations(path) == [Row("video1", "a dog")]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["is empty"]),
        (" \n\n", ["is empty"]),
        ("{}", ["no rows"]),
        ("file,caption\n", ["no rows"]),
        (b"\0\0\0\x18ftypmp42", ["binary"]),
        (b"file,caption\na.mp4,caf\xe9\n", ["UTF-8"]),
        ('{"a.mp4": "x", "a.mp4": "y"}', ["'a.mp4' twice", '["one", "two"]']),
        ('{"a.mp4": 3}', ["'a.mp4'", "3 (int)", "a string"]),
        ('{"a.mp4": {"caption": "x"}}', ["'a.mp4'", "(dict)", "docs/annotations.md"]),
        ('{"a.mp4": "x", "b.mp4": {"caption": "x"}}', ["'b.mp4'", "(dict)", "a string"]),
        ('{"a.mp4": ["x", null]}', ["'a.mp4'", "None (NoneType)"]),
        ('{"a.mp4": "x"', ["not valid JSON"]),
        ('{"a.mp4": "\\ud800"}', ["UTF-16"]),
        ('{"": "x"}', ["video is ''"]),
        ("[1, 2]", ["JSON list"]),
        ("[" * 100_000, ["not valid JSON"]),
        ('{"file": "a", "caption": "b"}\n{"file": "a"}\n', ["line 2", "no caption", "caption, text, sentence"]),
        ('{"file": "a", "caption": "b"}\n[]\n', ["line 2", "list"]),
        ('{"file": "a", "caption": "b"}\n{"file": \n', ["line 2", "not valid JSON"]),
        ("clip,caption\na,b\n", ["no video", "clip, caption", "path, video, file, video_path, filename, video_id"]),
        ("word " * 50_000, ["not CSV", "field larger"]),
        ("just some text\n", ["no video", "just some text"]),
        ("file,caption\na.mp4,a dog, running\n", ["3 cells", "2", "double quotes"]),
        ('file,caption\na.mp4,"a dog\n', ["not valid CSV"]),
    ],
)
def test_a_wrong_file_gets_one_error_that_names_file_and_fault(tmp_path, text, parts):
    path = _write(tmp_path, text)
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "expected" in message
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_missing_file_and_a_folder_and_an_unknown_format_are_named(tmp_path):
    with pytest.raises(AnnotationError, match="No such file"):
        read_annotations(tmp_path / "nothing.json")
    with pytest.raises(AnnotationError, match="directory"):
        read_annotations(tmp_path)
    with pytest.raises(AnnotationError, match=r"'xml'.*auto.*json"):
        read_annotations(tmp_path, "xml")
