"""Annotation files: what is read, what is refused, and whether the message helps."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from simvtp_ds.data.annotations import AnnotationError, Row, read_annotations

ROWS = [Row("a/1.mp4", "a dog, running"), Row("2.mp4", 'she says "hi"; he waves'), Row("ü.mp4", "naïve 犬")]


def _write(folder: Path, text: str | bytes, name: str = "captions") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("indent", [None, 2])
def test_the_authors_json_gives_a_row_a_caption_in_file_order(tmp_path, indent):
    path = _write(tmp_path, json.dumps(dict(ROWS), indent=indent))
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
    assert read_annotations(path) == [(entry["file"], entry["caption"].strip()) for entry in entries]


def test_both_published_variants_of_a_csv_give_the_same_captions(shared, tmp_path):
    folder = shared / "data/annotations/msrvtt"
    (variant,) = (folder / "variant_semicolon_crlf").glob("*test*.csv")
    first, second = (
        read_annotations(_write(tmp_path, path.read_bytes().replace(b"video_id", b"video", 1)))
        for path in (folder / "MSRVTT_JSFUSION_test.csv", variant)
    )
    assert len(first) == 1000
    assert len({row.caption for row in first}) == 995
    assert sorted(first) == sorted(second)


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
        ('{"a.mp4": {"caption": "x"}}', ["'a.mp4'", "(dict)"]),
        ('{"a.mp4": ["x", null]}', ["'a.mp4'", "None (NoneType)"]),
        ('{"a.mp4": "x"', ["not valid JSON"]),
        ('{"a.mp4": "\\ud800"}', ["UTF-16"]),
        ('{"": "x"}', ["video is ''"]),
        ("[1, 2]", ["JSON list"]),
        ("[" * 100_000, ["not valid JSON"]),
        ('{"file": "a", "caption": "b"}\n{"file": "a"}\n', ["line 2", "no caption", "caption, text, sentence"]),
        ('{"file": "a", "caption": "b"}\n[]\n', ["line 2", "list"]),
        ('{"file": "a", "caption": "b"}\n{"file": \n', ["line 2", "not valid JSON"]),
        ("video_id,caption\na,b\n", ["no video", "video_id, caption", "path, video, file, video_path, filename"]),
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
