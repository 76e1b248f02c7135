"""Probing: what is accepted, what is refused, and that neither a hang nor a crash spreads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from simvtp_ds.data.probe import Probe, probe_file, probe_files, stat_file


def write_video(path: Path, frames: int = 12, codec: str = "libx264", side: int = 64, **options: str) -> Path:
    """A moving pattern, 25 frames a second."""
    rng = np.random.default_rng(0)
    pattern = rng.integers(0, 255, (side, side + frames, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"threads": "1", **options})
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pattern[:, i : i + side]), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _odd_probe(path: str) -> Probe:
    """Stands in for the decoder: does to its process what the file's name says."""
    match Path(path).name:
        case "hang":
            time.sleep(600)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "pid":
            Path(path).write_text(str(os.getpid()))
            time.sleep(600)
    return Probe(frames=1)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b.mp4", "libx264", {"bf": "3"}),
        ("b.mkv", "libx264", {"bf": "3"}),
        ("a.webm", "libvpx-vp9", {}),
        ("a.avi", "mpeg4", {}),
    ],
)
def test_a_whole_file_has_the_frames_that_were_written(tmp_path, name, codec, options):
    names = {"libx264": "h264", "libvpx-vp9": "vp9", "mpeg4": "mpeg4"}
    probe = probe_file(str(write_video(tmp_path / name, 20, codec, **options)))
    assert probe == Probe("", 20, 25.0, 64, 64, names[codec])


def test_a_file_cut_short_counts_the_frames_before_the_cut(tmp_path):
    path = write_video(tmp_path / "a.mkv", 60, g="1")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    probe = probe_file(str(path))
    assert probe.reason == ""
    assert 15 < probe.frames < 45


@pytest.mark.parametrize(("broken", "accepted"), [(45, True), (10, False)])
def test_frames_count_up_to_the_first_damaged_one_and_most_must_come_before_it(tmp_path, broken, accepted):
    path = write_video(tmp_path / "a.mkv", 60, g="1")
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        whole, damaged = path.read_bytes(), bytes(packets[broken])
    place = whole.index(damaged)
    path.write_bytes(whole[: place + 8] + b"\xff" * (len(damaged) - 8) + whole[place + len(damaged) :])
    probe = probe_file(str(path))
    assert probe.frames == broken
    assert probe.reason.startswith("" if accepted else f"damaged: {broken} of 60 frames")
    assert bool(probe.reason) != accepted


@pytest.mark.parametrize("name", ["reordered.avi", "no_time_stamps.h264"])
def test_time_stamps_that_do_not_serve_are_no_reason_to_refuse(tmp_path, name):
    probe = probe_file(str(write_video(tmp_path / name, 40, bf="3")))
    assert (probe.reason, probe.frames) == ("", 40)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "not a readable video: mp4 without a usable index"),
        (bytes(range(256)) * 40, "not a readable video"),
        (b"a poem\n" * 50, "not a"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n", "not a"),
    ],
)
def test_what_is_no_video_is_refused_with_its_kind(tmp_path, content, kind):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    probe = probe_file(str(path))
    assert probe.reason.startswith(kind)
    assert probe.frames == 0


def test_a_still_picture_and_sound_alone_are_refused(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    Image.new("RGB", (64, 64)).save(tmp_path / "named_as_video.mp4", format="PNG")
    for name in ("a.jpg", "named_as_video.mp4"):
        assert probe_file(str(tmp_path / name)).reason.startswith("not a video: a still picture"), name
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))  # pyright: ignore[reportAttributeAccessIssue]
    assert probe_file(str(tmp_path / "a.wav")).reason == "no video stream: streams found: audio"


def test_paths_that_cannot_be_files_have_reasons(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert stat_file(str(tmp_path / "pipe.mp4")) == stat_file(str(tmp_path)) == "not a file: a folder, pipe or device"
    assert stat_file(str(tmp_path / "none.mp4")) == "file missing: no such file"
    for path in ("a\0b", "x" * 300):
        assert str(stat_file(str(tmp_path / path))).startswith("file unreadable: ")


def test_a_hang_and_a_crash_are_listed_and_the_rest_is_still_probed():
    start = time.monotonic()
    found = dict(probe_files(["hang", "crash", "a", "b", "c"], 2, 1.5, _odd_probe))
    assert found["hang"].reason == "hung: not done after 1.5 s"
    assert found["crash"].reason == f"decoder crashed: its process ended by signal {int(signal.SIGSEGV)}"
    assert [found[name] for name in "abc"] == [Probe(frames=1)] * 3
    assert time.monotonic() - start < 30


def test_no_paths_need_no_process():
    assert list(probe_files([], 4, 1.0)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_probing_processes_die_with_a_parent_that_is_killed(tmp_path):
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {os.getcwd()!r}];"  # noqa: PTH109
        "from test_probe import _odd_probe, probe_files;"
        f"list(probe_files([{str(tmp_path / 'pid')!r}], 1, 600, _odd_probe))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        _until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        child = Path("/proc") / (tmp_path / "pid").read_text()
        assert child.exists()
    finally:
        parent.kill()
        parent.wait()
    _until(lambda: not child.exists())


def _until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_every_odd_file_is_accepted_or_refused_with_a_reason_that_agrees_with_ffmpeg(shared):
    folder = shared / "data/odd"
    entries = [json.loads(line) for line in (folder / "odd.jsonl").read_text().splitlines()]
    found = dict(probe_files([str(folder / entry["file"]) for entry in entries], 2, 60))
    assert len(found) == len(entries) == 27
    for entry in entries:
        probe = found[str(folder / entry["file"])]
        if entry["ffmpeg_errors"]:
            assert ":" in probe.reason, entry["file"]
        else:
            expected = (entry["frames_decoded"], entry["width"], entry["height"], entry["codec"])
            assert (probe.reason, (probe.frames, probe.width, probe.height, probe.codec)) == ("", expected), entry[
                "file"
            ]
            assert entry["fps"] is None or probe.fps == pytest.approx(entry["fps"], abs=0.01)
