"""The whole of prepare: what lands in the folder, how it resumes, and how it fails."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from test_probe import write_video

from simvtp_ds.data.manifest import Manifest
from simvtp_ds.data.prepare import PrepareError, prepare
from simvtp_ds.data.text import Tokenizer, TokenizerError

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "prepare.py"
OUTPUTS = ["manifest.arrow", "probe.jsonl", "refused.jsonl", "summary.json", "tokenizer.json"]


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Two videos, one of them with two captions, and four rows that cannot be used."""
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    write_video(folder / "sub/a.mp4", 12)
    write_video(folder / "b.mkv", 25)
    (folder / "empty.mp4").write_bytes(b"")
    rows = {
        "sub/a.mp4": ["a red ball moves left", "  a ball moves "],
        "gone.mp4": "a ghost",
        "b.mkv": "a blue square moves right",
        "empty.mp4": ["nothing to see", "nothing at all"],
        "./b.mkv": " ",
    }
    (folder / "captions.json").write_text(json.dumps(rows))
    return folder


def _refused(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]


def test_usable_rows_are_in_the_manifest_in_file_order_and_the_others_are_listed(corpus, tmp_path):
    out = tmp_path / "deep" / "out"
    summary = prepare(corpus / "captions.json", out)
    assert sorted(path.name for path in out.iterdir()) == OUTPUTS
    manifest = Manifest.open(out)
    clips = [manifest[i] for i in range(len(manifest))]
    assert [(clip.clip_id, clip.caption) for clip in clips] == [
        ("sub/a.mp4", "a red ball moves left"),
        ("sub/a.mp4", "a ball moves"),
        ("b.mkv", "a blue square moves right"),
    ]
    assert [clip.frames for clip in clips] == [12, 12, 25]
    for clip in clips:
        assert clip.uri == str(corpus / clip.clip_id)
        assert (clip.offset, clip.length) == (0, Path(clip.uri).stat().st_size)
        assert (clip.fps, clip.width, clip.height, clip.codec) == (25.0, 64, 64, "h264")
    assert [(row["video"], row["caption"], row["reason"].partition(":")[0]) for row in _refused(out)] == [
        ("gone.mp4", "a ghost", "file missing"),
        ("empty.mp4", "nothing to see", "empty file"),
        ("empty.mp4", "nothing at all", "empty file"),
        ("./b.mkv", "", "empty caption"),
    ]
    assert (summary.rows, summary.accepted, summary.videos, summary.probed) == (7, 3, 2, 2)
    assert summary.refused == {"empty file": 2, "file missing": 1, "empty caption": 1}
    assert summary.hours == pytest.approx((12 + 25) / 25 / 3600)
    assert (summary.format, summary.published, summary.not_annotated) == ("json", "", [])
    assert (summary.annotated_videos, summary.captions, summary.missing_videos) == (4, 7, 1)
    assert summary.captions_per_video == {"min": 1, "mean": 1.75, "max": 2}  # ./b.mkv is b.mkv
    assert json.loads((out / "summary.json").read_text()) == asdict(summary)
    assert Tokenizer.load(out).vocab_size == summary.vocab_size


def test_two_spellings_of_a_path_are_captions_of_one_clip(corpus, tmp_path):
    (corpus / "captions.csv").write_text("path,caption\nb.mkv,one\n./b.mkv,two\nsub/../b.mkv,three\nsub//a.mp4,four\n")
    summary = prepare(corpus / "captions.csv", tmp_path / "out")
    manifest = Manifest.open(tmp_path / "out")
    clips = [manifest[i] for i in range(len(manifest))]
    assert [(clip.clip_id, clip.caption) for clip in clips] == [
        ("b.mkv", "one"),
        ("b.mkv", "two"),
        ("b.mkv", "three"),
        ("sub/a.mp4", "four"),
    ]
    assert len({clip.uri for clip in clips}) == summary.videos == summary.probed == 2


def test_a_rerun_probes_nothing_and_writes_the_same_bytes(corpus, tmp_path):
    prepare(corpus / "captions.json", tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in OUTPUTS if name != "summary.json"}
    assert prepare(corpus / "captions.json", tmp_path / "out", workers=2).probed == 0
    assert prepare(corpus / "captions.json", tmp_path / "fresh", workers=2).probed == 2
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before
    for name in ("manifest.arrow", "tokenizer.json", "refused.jsonl"):
        assert (tmp_path / "fresh" / name).read_bytes() == before[name]


def test_a_torn_or_foreign_line_in_the_results_costs_only_that_file(corpus, tmp_path):
    out = tmp_path / "out"
    prepare(corpus / "captions.json", out)
    first, second = (out / "probe.jsonl").read_bytes().splitlines(keepends=True)
    (out / "probe.jsonl").write_bytes(b"[]\nnot json\n" + first + second[:-9])
    assert prepare(corpus / "captions.json", out).probed == 1
    assert prepare(corpus / "captions.json", out).probed == 0
    assert (out / "probe.jsonl").read_bytes().splitlines(keepends=True) == [b"[]\n", b"not json\n", first, second]


def test_a_file_that_changed_is_probed_again(corpus, tmp_path):
    prepare(corpus / "captions.json", tmp_path / "out")
    write_video(corpus / "b.mkv", 30)
    assert prepare(corpus / "captions.json", tmp_path / "out").probed == 1
    assert Manifest.open(tmp_path / "out")[2].frames == 30


def test_videos_may_lie_elsewhere_and_the_tokenizer_may_be_given(corpus, tmp_path):
    prepare(corpus / "captions.json", tmp_path / "first", vocab_size=60)
    (tmp_path / "captions.csv").write_text("path,caption\nb.mkv,a square\n")
    summary = prepare(tmp_path / "captions.csv", tmp_path / "out", corpus, tokenizer=str(tmp_path / "first"))
    assert summary.vocab_size == Tokenizer.load(tmp_path / "first").vocab_size <= 60
    assert Manifest.open(tmp_path / "out")[0].clip_id == "b.mkv"


def test_without_a_usable_row_an_earlier_manifest_stays_and_the_reasons_are_written(corpus, tmp_path):
    out = tmp_path / "out"
    prepare(corpus / "captions.json", out)
    before = (out / "manifest.arrow").read_bytes()
    (tmp_path / "bad.json").write_text('{"gone.mp4": "a ghost", "empty.mp4": "nothing"}')
    with pytest.raises(PrepareError, match=r"none of its 2 rows is usable \(1 file missing, 1 empty file\)") as caught:
        prepare(tmp_path / "bad.json", out, corpus)
    assert (out / "manifest.arrow").read_bytes() == before
    assert len(_refused(out)) == 2
    summary = json.loads((out / "summary.json").read_text())
    assert caught.value.summary is not None
    assert summary == asdict(caught.value.summary)
    assert (summary["rows"], summary["accepted"], summary["missing_videos"], summary["vocab_size"]) == (2, 0, 1, 0)


def test_another_extension_will_do_and_two_of_them_are_refused_by_name(corpus, tmp_path):
    (corpus / "c.avi").hardlink_to(corpus / "b.mkv")
    (corpus / "c.WEBM").hardlink_to(corpus / "b.mkv")
    (corpus / "d").mkdir()  # frames of d.mov, say
    (corpus / "d.mov").hardlink_to(corpus / "b.mkv")
    captions = {"sub/a": "one", "b.avi": "two", "c": "three", "d": "four", "e": "five", "b.": "six"}
    (corpus / "captions.json").write_text(json.dumps(captions))
    summary = prepare(corpus / "captions.json", tmp_path / "out")
    manifest = Manifest.open(tmp_path / "out")
    assert [(manifest[i].clip_id, Path(manifest[i].uri).name) for i in range(len(manifest))] == [
        ("sub/a", "a.mp4"),
        ("b.avi", "b.mkv"),
        ("d", "d.mov"),
        ("b.", "b.mkv"),
    ]
    refused = {row["video"]: row["reason"] for row in _refused(tmp_path / "out")}
    assert refused == {
        "c": f"ambiguous: c may be c.WEBM or c.avi in {corpus}; keep one of them there",
        "e": "file missing: no such file",
    }
    assert summary.refused == {"ambiguous": 1, "file missing": 1}
    assert summary.missing_videos == 1


def test_a_file_annotated_under_its_own_name_stands_for_no_other_video(corpus, tmp_path):
    (corpus / "captions.json").write_text('{"b.avi": "gone", "b.mkv": "here"}')
    prepare(corpus / "captions.json", tmp_path / "out")
    assert [row["reason"] for row in _refused(tmp_path / "out")] == ["file missing: no such file"]


def test_what_is_wrong_is_said_before_anything_is_written(corpus, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(PrepareError, match="workers is 0"):
        prepare(corpus / "captions.json", out, workers=0)
    with pytest.raises(PrepareError, match="nowhere: no such folder"):
        prepare(corpus / "captions.json", out, tmp_path / "nowhere")
    with pytest.raises(TokenizerError):
        prepare(corpus / "captions.json", out, tokenizer=str(corpus))
    assert not out.exists()


def test_two_at_once_in_one_folder_are_refused(corpus, tmp_path):
    (tmp_path / "probe.jsonl").touch()
    with (tmp_path / "probe.jsonl").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(PrepareError, match="another prepare"):
            prepare(corpus / "captions.json", tmp_path)


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, cwd="/", check=False)


def test_the_command_ends_in_a_summary_and_exit_code_0(corpus, tmp_path):
    done = _run(corpus / "captions.json", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "accepted         3 captions of 2 videos" in done.stdout
    assert "  empty file     2" in done.stdout
    assert "probing: 2 of 2 files" in done.stdout
    assert "captions in      7 of 4 videos\n" in done.stdout
    assert "  a video        1 to 2, on average 1.75\n" in done.stdout


def test_the_command_prints_the_summary_also_when_every_video_is_missing(tmp_path):
    entries = [{"video": f"{i}.mov", "description": f"number {i}"} for i in (1, 2, 1)]
    (tmp_path / "test_data.json").write_text(json.dumps(entries))
    (tmp_path / "list.txt").write_text("1\n3\n")
    done = _run(tmp_path / "test_data.json", "--out", tmp_path / "out", "--list", tmp_path / "list.txt")
    _is_one_error(done)
    assert "none of its 1 rows is usable (1 file missing)" in done.stderr
    for line in (
        "captions in     2 of 1 videos, joined to 1 paragraphs",
        "not annotated   1 of the list's names: 3",
        "missing videos  1",
        "tokenizer       none written",
    ):
        assert f"{line}\n" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "probe.jsonl",
        "refused.jsonl",
        "summary.json",
    ]


@pytest.mark.parametrize("fault", ["annotations", "unusable", "out is a file"])
def test_the_command_ends_in_one_line_and_exit_code_1(corpus, tmp_path, fault):
    captions, out = corpus / "captions.json", tmp_path / "out"
    if fault == "annotations":
        captions = corpus / "nothing.json"
    elif fault == "unusable":
        captions.write_text('{"gone.mp4": "a ghost"}')
    else:
        out.write_text("mine")
    _is_one_error(_run(captions, "--out", out))
    assert not (out / "manifest.arrow").exists()


def _is_one_error(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("room", [100, 1000])
def test_a_full_disk_ends_in_one_line_and_leaves_no_half_written_file(corpus, tmp_path, room):
    # A limit on file sizes stands in for the full disk: 100 bytes do not hold a probe result, 1000 no tokenizer.
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}));"
        f"sys.argv = ['prepare.py', {str(corpus / 'captions.json')!r}, '--out', {str(tmp_path / 'out')!r}];"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r}); import prepare; sys.exit(prepare.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    _is_one_error(done)
    assert "File too large" in done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {"probe.jsonl", "refused.jsonl"}
    assert prepare(corpus / "captions.json", tmp_path / "out").accepted == 3


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, how):
    folder = tmp_path / "corpus"
    folder.mkdir()
    path = write_video(folder / "0.mp4", 100, side=256)
    for i in range(1, 30):
        (folder / f"{i}.mp4").hardlink_to(path)
    (folder / "captions.json").write_text(json.dumps({f"{i}.mp4": f"number {i}" for i in range(30)}))
    command = [sys.executable, SCRIPT, folder / "captions.json", "--out", tmp_path / "out", "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "probe.jsonl"
    end = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= 5) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert how == signal.SIGKILL or errors == "interrupted; the same command goes on where this one stopped\n"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["probe.jsonl"]
    known = log.read_bytes().count(b"\n")
    assert prepare(folder / "captions.json", tmp_path / "out").probed == 30 - known < 26
    prepare(folder / "captions.json", tmp_path / "fresh")
    assert (tmp_path / "out/manifest.arrow").read_bytes() == (tmp_path / "fresh/manifest.arrow").read_bytes()


def test_all_shared_clips_are_accepted_with_the_listed_frames(shared, tmp_path):
    entries = [json.loads(line) for line in (shared / "data/clips/clips.jsonl").read_text().splitlines()]
    summary = prepare(shared / "data/clips/clips.jsonl", tmp_path, workers=2)
    assert summary.refused == {}
    manifest = Manifest.open(tmp_path)
    clips = [manifest[i] for i in range(len(manifest))]
    found = [(c.clip_id, c.frames, c.width, c.height, c.codec) for c in clips]
    assert found == [(e["file"], e["frames"], e["width"], e["height"], e["codec"]) for e in entries]
