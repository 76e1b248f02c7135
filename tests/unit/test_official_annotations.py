"""The data sets' own files: every published file against counts made here, every schema as a tiny file, every error."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

import pytest

from simvtp_ds.data.annotations import AnnotationError, Row, read_annotations
from simvtp_ds.data.annotations_formats import READERS
from simvtp_ds.data.annotations_lists import keep_listed, read_list
from simvtp_ds.data.annotations_videos import find_videos

JSFUSION = "key,vid_key,video_id,sentence\n" + "".join(f"ret{i},msr{i},video{i},number {i}\n" for i in range(1000))
LSMDC = "1_A_00.00.51.926-00.00.54.129\t00.00.51.926\t00.00.54.129\t00.00.51.426\t00.00.54.629"
MSRVTT = {
    "info": {"contributor": "x"},
    "videos": [
        {
            "category": 9,
            "url": "u",
            "video_id": f"video{i}",
            "start time": 1.5,
            "end time": 2.5,
            "split": split,
            "id": i,
        }
        for i, split in enumerate(["train", "validate", "test"])
    ],
    "sentences": [
        {"caption": f" caption {j} ", "video_id": f"video{i}", "sen_id": j}
        for j, i in enumerate([2, 0, 0, 1])  # not in the videos' order
    ],
}
DIDEMO = [
    {"num_segments": 6, "description": " A cat. ", "times": [[0, 0]], "video": "x@N0.", "annotation_id": 1},
    {"num_segments": 6, "description": "a dog", "times": [[0, 0]], "video": "y.mov", "annotation_id": 2},
    {"num_segments": 6, "description": "it jumps", "times": [[0, 0]], "video": "x@N0.mp4", "annotation_id": 3},
]
ACTIVITYNET = {
    "v_a": {"duration": 9.0, "timestamps": [[5, 1], [2, 9]], "sentences": ["One. ", " Two  words."]},
    "v_b": {"duration": 9.0, "timestamps": [[0, 1]], "sentences": [" Alone."]},
}
VATEX = [{"videoID": "abc_000001_000011", "enCap": ["one", " two"], "chCap": ["x"]}]
WEBVID = (
    "videoid,name,page_idx,page_dir,duration,contentUrl\n"
    '7,"Cat, ""big"" one",0,000001_000050,PT00H00M17S,https://x/7.mp4\n'
)
TINY: dict[str, tuple[str, list[Row]]] = {
    "msrvtt-1ka": (JSFUSION, [Row(f"video{i}", f"number {i}") for i in range(1000)]),
    "msrvtt": (
        json.dumps(MSRVTT),
        [
            Row("video2", "caption 0", split="test"),
            Row("video0", "caption 1", split="train"),
            Row("video0", "caption 2", split="train"),
            Row("video1", "caption 3", split="validate"),
        ],
    ),
    "msrvtt-captions": (
        '[{"video": "video1.mp4", "caption": ["one", "two", "one"]}]',
        [Row("video1.mp4", "one"), Row("video1.mp4", "two"), Row("video1.mp4", "one")],
    ),
    "msvd": ('{"-4wsuPCjDBc_5_15": ["a", "b"]}', [Row("-4wsuPCjDBc_5_15", "a"), Row("-4wsuPCjDBc_5_15", "b")]),
    "activitynet": (json.dumps(ACTIVITYNET), [Row("v_a", "One. Two  words.", 2), Row("v_b", "Alone.")]),
    "didemo": (json.dumps(DIDEMO, indent=1), [Row("x@N0.", "A cat. it jumps", 2), Row("y.mov", "a dog")]),
    "lsmdc": (f'{LSMDC}\tShe says "hi, \n', [Row("1_A_00.00.51.926-00.00.54.129", 'She says "hi,')]),
    "vatex": (json.dumps(VATEX), [Row("abc_000001_000011", "one"), Row("abc_000001_000011", "two")]),
    "webvid": (WEBVID, [Row("000001_000050/7.mp4", 'Cat, "big" one')]),
    "jsonl": ('{"video_id": "a", "caption": "b"}\n', [Row("a", "b")]),
    "json": ('{"a_b_1_2": "b"}', [Row("a_b_1_2", "b")]),
    "csv": ("video_id,sentence\na,b\n", [Row("a", "b")]),
}


def _write(folder: Path, text: str, name: str = "annotations.txt") -> Path:
    (folder / name).write_text(text, newline="")
    return folder / name


def _error(path: Path, **options: str | Path) -> str:
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path, **options)  # type: ignore[arg-type]  # options of several types
    message = str(caught.value)
    assert "expected" in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", READERS)
def test_each_schema_is_known_by_its_content_and_read_as_its_format(tmp_path, name):
    text, rows = TINY[name]
    for found in (read_annotations(_write(tmp_path, text)), read_annotations(_write(tmp_path, text), name)):
        assert found.format == name
        assert found.rows == rows


@pytest.mark.parametrize("asked", READERS)
def test_a_file_given_as_another_format_is_refused_with_what_was_found_and_expected(tmp_path, asked):
    # Generic readers take official files that they can read: that is the way out of a refused row count.
    fits = {"csv": {"msrvtt-1ka", "webvid", "lsmdc"}, "json": {"msvd"}, "msvd": set()}
    for name, (text, _) in TINY.items():
        if name != asked and name not in fits.get(asked, ()):
            message = _error(_write(tmp_path, text), format=asked)
            assert f"looks like {name}" in message
            assert f"expected {asked} ({READERS[asked].shape})" in message
            assert f"--format {name}" in message


def _jsfusion(path: Path, delimiter: str) -> list[Row]:
    with path.open(newline="") as file:
        return [Row(row["video_id"], row["sentence"]) for row in csv.DictReader(file, delimiter=delimiter)]


def test_msrvtt_1ka_is_1000_videos_with_one_caption_each_in_both_variants(shared):
    folder = shared / "data/annotations/msrvtt"
    for path, delimiter in (
        (folder / "MSRVTT_JSFUSION_test.csv", ","),
        (folder / "variant_semicolon_crlf/MSRVTT_JSFUSION_test.csv", ";"),
    ):
        found = read_annotations(path)
        assert (found.format, found.published) == ("msrvtt-1ka", "as published: MSR-VTT 1k-A")
        assert found.rows == _jsfusion(path, delimiter)
        assert len({row.video for row in found.rows}) == 1000
        assert len({row.caption for row in found.rows}) == 995


def test_msrvtt_captions_are_20_for_each_of_2990_videos_and_the_lists_choose_among_them(shared):
    folder = shared / "data/annotations/msrvtt"
    path = folder / "msrvtt_caption_test.json"
    found = read_annotations(path)
    entries = json.loads(path.read_text())
    assert (found.format, found.published, len(found.rows)) == ("msrvtt-captions", "as published: MSR-VTT test", 59800)
    assert [(row.video, row.caption) for row in found.rows] == [
        (entry["video"], caption.strip()) for entry in entries for caption in entry["caption"]
    ]
    assert read_annotations(path, names=folder / "msrvtt_test.txt") == found
    test = {row.video for row in _jsfusion(folder / "MSRVTT_JSFUSION_test.csv", ",")}
    kept, missing = keep_listed(found.rows, read_list(folder / "MSRVTT_JSFUSION_test.csv"))
    assert {row.video for row in kept} == {f"{video}.mp4" for video in test}
    assert missing == []
    kept, missing = keep_listed(found.rows, read_list(folder / "MSRVTT_train.9k.csv"))
    assert (len(kept), len(missing)) == (20 * 1990, 9000 - 1990)  # the test videos that are not in 1k-A


@pytest.mark.parametrize(("file", "count"), [("MSRVTT_train.9k.csv", 9000), ("MSRVTT_train.7k.csv", 7010)])
def test_the_train_lists_are_told_to_be_lists_of_so_many_videos(shared, file, count):
    message = _error(shared / "data/annotations/msrvtt" / file)
    assert f"a list that names {count} videos (video0, " in message
    assert f"--list {shared / 'data/annotations/msrvtt' / file}" in message


def test_msvd_has_80827_captions_of_1970_videos_and_lists_of_1200_100_and_670(shared):
    folder = shared / "data/annotations/msvd"
    found = read_annotations(folder / "captions_msvd.json")
    table = json.loads((folder / "captions_msvd.json").read_text())
    assert (found.format, found.published) == ("msvd", "as published: MSVD, all")
    assert (len(found.rows), len({row.video for row in found.rows})) == (80827, 1970)
    assert [(row.video, row.caption) for row in found.rows] == [
        (v, c) for v, captions in table.items() for c in captions
    ]
    for part, count in (("train", 1200), ("val", 100), ("test", 670)):
        path = folder / f"{part}_list.txt"
        kept, missing = keep_listed(found.rows, read_list(path))
        wanted = set(path.read_text().split())
        assert list(dict.fromkeys(row.video for row in kept)) == [video for video in table if video in wanted]
        assert (len({row.video for row in kept}), missing) == (count, [])
        assert f"names {count} videos" in _error(path)


@pytest.mark.parametrize(("file", "split"), [("train_modified.json", "train"), ("val_1.json", "val_1")])
def test_activitynet_gives_a_paragraph_a_video(shared, file, split):
    path = shared / "data/annotations/activitynet_captions" / file
    found = read_annotations(path)
    table = json.loads(path.read_text())
    assert (found.format, found.published) == ("activitynet", f"as published: ActivityNet Captions {split}")
    assert found.rows == [
        Row(video, " ".join(sentence.strip() for sentence in entry["sentences"]), len(entry["sentences"]))
        for video, entry in table.items()
    ]


def test_didemo_gives_a_paragraph_for_each_of_the_1004_test_videos_whatever_their_extension(shared):
    path = shared / "data/annotations/didemo/test_data.json"
    found = read_annotations(path)
    entries = json.loads(path.read_text())
    paragraphs = defaultdict(list)
    for entry in entries:
        paragraphs[entry["video"].rpartition(".")[0]].append(entry["description"].strip())
    assert (found.format, found.published) == ("didemo", "as published: DiDeMo test")
    assert len(found.rows) == len(paragraphs) == 1004
    assert sum(row.joined for row in found.rows) == len(entries) == 4021
    assert [row.caption for row in found.rows] == [" ".join(texts) for texts in paragraphs.values()]
    assert {row.video for row in found.rows} <= {entry["video"] for entry in entries}


def test_the_rows_of_vatex_have_10_captions_each(shared):
    (path,) = (shared / "data/annotations/vatex").iterdir()
    found = read_annotations(path)
    assert [(row.video, row.caption) for row in found.rows] == [
        (entry["videoID"], caption.strip()) for entry in json.loads(path.read_text()) for caption in entry["enCap"]
    ]
    assert found.format == "vatex"
    assert found.published.startswith("not of a published size (VATEX train: 25991 videos, 259910 captions")


@pytest.mark.parametrize("count", [999, 1001])
def test_1ka_with_another_row_count_is_refused_with_the_way_out(tmp_path, count):
    path = _write(tmp_path, "".join((JSFUSION + "ret,msr,more,one\n").splitlines(keepends=True)[: count + 1]))
    message = _error(path)
    for part in (f"{path}: holds {count} rows", "1k-A", "expected 1000", "--format csv"):
        assert part in message
    assert len(read_annotations(path, "csv").rows) == count


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (JSFUSION.replace(",video1,", ",video0,"), ["names 'video0' 2 times", "one caption each", "--format csv"]),
        (json.dumps({**MSRVTT, "videos": MSRVTT["videos"][:2]}), ["sentence 1 belongs to 'video2'", "own videos"]),
        (json.dumps({**MSRVTT, "sentences": [{"video_id": "video0"}]}), ["sentence 1", "video_id and caption"]),
        (json.dumps({**MSRVTT, "videos": {}}), ["{} (dict)", "two lists"]),
        (json.dumps({**MSRVTT, "videos": [{"video_id": 3}]}), ["video 1", "strings"]),
        ('[{"video": "a", "caption": ["x"]}, {"video": "b"}]', ["entry 2", "video and caption"]),
        ('[{"video": "a", "caption": [["x"]]}]', ["entry 1", "'a'", "(list)", "list of strings"]),
        ('{"abcdefghijk_1_2": ["x"], "b_1_2": 3}', ["'b_1_2'", "3 (int)"]),
        (json.dumps({**ACTIVITYNET, "v_c": ["x"]}), ["'v_c'", "an object with sentences"]),
        (json.dumps([*DIDEMO, {"video": "z.avi"}]), ["entry 4", "video and description"]),
        (f"{LSMDC}\tone\n{LSMDC}\n", ["line 2 has 5 cells", "6: clip id, four times, caption"]),
        (json.dumps([*VATEX, {"videoID": "x"}]), ["entry 2", "videoID and enCap"]),
        (WEBVID + ",no id,0,000001_000050,x,y\n", ["row 2", "videoid is ''"]),
        (WEBVID + "8,an, unquoted comma,0,000001_000050,x,y\n", ["7 cells", "expected 6"]),
        ('[{"clip": "a"}]', ["a JSON list, its first entry {'clip': 'a'}", *READERS, "docs/annotations.md"]),
    ],
)
def test_an_entry_that_does_not_fit_is_named_with_what_was_expected(tmp_path, text, parts):
    path = _write(tmp_path, text)
    message = _error(path)
    assert message.startswith(str(path))
    for part in parts:
        assert part in message


def test_a_size_that_was_not_published_is_told(tmp_path):
    found = read_annotations(_write(tmp_path, TINY["msvd"][0]))
    assert found.published == "not of a published size (MSVD, all: 1970 videos, 80827 captions)"
    assert read_annotations(_write(tmp_path, WEBVID)).published == ""


def test_a_split_chooses_by_what_the_file_says(tmp_path):
    path = _write(tmp_path, json.dumps(MSRVTT))
    for split, videos in (
        ("train", ["video0"] * 2),
        ("val", ["video1"]),
        ("validate", ["video1"]),
        ("test", ["video2"]),
    ):
        assert [row.video for row in read_annotations(path, split=split).rows] == videos
    only = {**MSRVTT, "videos": MSRVTT["videos"][:2], "sentences": MSRVTT["sentences"][1:]}
    assert "no video in the split 'test'; expected one of train, validate" in _error(
        _write(tmp_path, json.dumps(only)), split="test"
    )
    assert "msvd does not say which split" in _error(_write(tmp_path, TINY["msvd"][0]), split="train")


@pytest.mark.parametrize(
    "text",
    [
        "video_id\r\nvideo2\r\nvideo9\r\n",
        "test/MSRVTT/video2.mp4\n\nvideo9\n",
        "video2.webm\nvideo2\nvideo9",
        "key;video_id;sentence\n0;video2;x\n1;video9;y\n",
        "./video2.\nvideo9\n",
    ],
)
def test_a_list_names_videos_with_or_without_header_folder_and_extension(tmp_path, text):
    found = read_annotations(_write(tmp_path, json.dumps(MSRVTT)), names=_write(tmp_path, text, "list"))
    assert [row.caption for row in found.rows] == ["caption 0"]
    assert found.not_annotated == ["video9"]


def test_a_list_tells_folders_apart_where_it_names_them(tmp_path):
    path = _write(tmp_path, json.dumps({"a/1.mp4": "one", "b/1.mp4": "two", "b/11.mp4": "three"}))
    for text, videos in (("b/1", ["b/1.mp4"]), ("1.mp4", ["a/1.mp4", "b/1.mp4"]), ("/data/a/1.mkv", ["a/1.mp4"])):
        assert [row.video for row in read_annotations(path, names=_write(tmp_path, text, "list")).rows] == videos


def test_list_and_split_together_keep_what_both_name(tmp_path):
    path, names = _write(tmp_path, json.dumps(MSRVTT)), _write(tmp_path, "video0\nvideo2\n", "list")
    found = read_annotations(path, split="test", names=names)
    assert ([row.video for row in found.rows], found.not_annotated) == (["video2"], ["video0"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("video7\nvideo8\n", ["none of its 2 videos (video7, video8)", "annotations.txt (video2, video0, video1)"]),
        ("", ["is empty"]),
        ("video_id\n", ["names no video"]),
        ('{"video0": "x"}', ["is JSON", "one video a line"]),
        (None, ["cannot be read (No such file", "expected a list of videos"]),
    ],
)
def test_a_list_that_is_of_no_use_is_named(tmp_path, text, parts):
    names = tmp_path / "list" if text is None else _write(tmp_path, text, "list")
    message = _error(_write(tmp_path, json.dumps(MSRVTT)), names=names)
    assert message.startswith(str(names))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("name", "video", "files", "taken"),
    [
        ("webvid", "p/7.mp4", ["videos/p/7.mp4", "p/7.mp4"], "videos/p/7.mp4"),
        ("webvid", "p/7.mp4", ["p/7.mp4"], "p/7.mp4"),
        ("webvid", "p/7.mp4", ["videos/p/7.webm"], "videos/p/7.webm"),
        ("lsmdc", "1_A_00.00.51.926-00.00.54.129", ["1_A/1_A_00.00.51.926-00.00.54.129.avi"], ""),
        ("lsmdc", "1_A_00.00.51.926-00.00.54.129", ["1_A_00.00.51.926-00.00.54.129.avi"], ""),
        ("msvd", "a_1_2", ["a_1_2.txt", "a_1_2.avi", "a_1_22.mp4"], "a_1_2.avi"),
        ("didemo", "x@N0.", ["x@N0.MOV"], ""),
        ("didemo", "x@N0.mov", ["x@N0.mov", "x@N0.mp4"], "x@N0.mov"),
    ],
)
def test_videos_are_found_where_the_releases_put_them(tmp_path, name, video, files, taken):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    found = find_videos(str(tmp_path), {video: READERS[name].places(video)})
    assert found == {video: (str(tmp_path / (taken or files[0])), "")}


def test_a_folder_is_listed_once_and_only_where_a_path_is_missing(tmp_path, monkeypatch):
    from simvtp_ds.data import annotations_videos

    listed: list[str] = []
    scandir = annotations_videos.os.scandir
    monkeypatch.setattr(annotations_videos.os, "scandir", lambda path: listed.append(path) or scandir(path))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for i in range(5):
        (tmp_path / f"a/{i}.mp4").touch()
        (tmp_path / f"b/{i}.mkv").touch()
    found = find_videos(
        str(tmp_path), {f"{folder}/{i}.mp4": (f"{folder}/{i}.mp4",) for i in range(9) for folder in "ab"}
    )
    assert sorted(listed) == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert found["b/3.mp4"] == (str(tmp_path / "b/3.mkv"), "")
    listed.clear()
    assert find_videos(str(tmp_path), {"a/1.mp4": ("a/1.mp4",)}) == {"a/1.mp4": (str(tmp_path / "a/1.mp4"), "")}
    assert listed == []
