"""Transcoding: sizes, key frames, time stamps, colours, and the same bytes from the same file."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from test_probe import write_video

from simvtp_ds.data.decode import decode_into
from simvtp_ds.data.probe import probe_file
from simvtp_ds.data.render import draw, encode
from simvtp_ds.data.sampling import Box, View
from simvtp_ds.data.scenes import Scene
from simvtp_ds.data.storage import Source
from simvtp_ds.data.transcode import Encoding, TranscodeError, fitted, transcode

ROOT = Path(__file__).resolve().parents[2]


def made(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path


def packets(path: Path) -> list[tuple[int, bool]]:
    """(number in the order of presentation, key frame?) of each packet, as stored."""
    with av.open(str(path)) as container:
        found = [(p.pts, p.is_keyframe) for p in container.demux(video=0) if p.size]
    times = sorted(pts for pts, _ in found if pts is not None)
    return [(times.index(pts), key) for pts, key in found if pts is not None]


def times(path: Path) -> list[Fraction]:
    """Seconds of each frame from the first one's."""
    with av.open(str(path)) as container:
        shown = [(frame.pts or 0) * (frame.time_base or Fraction(0)) for frame in container.decode(video=0)]
    return [time - shown[0] for time in shown]


def pictures(path: Path, side: int) -> np.ndarray:
    """All frames as training sees them."""
    probe = probe_file(str(path))
    out = np.empty((probe.frames, side, side, 3), dtype=np.uint8)
    view = View(np.arange(probe.frames), Box(0, 0, probe.height, probe.width), False)
    decode_into(out, Source(str(path), 0, path.stat().st_size), view)
    return out


def uneven(path: Path, pts: list[int]) -> Path:
    """Frames of one grey level each, 8 more for each, at these milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "qp": "4"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, time in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * i, dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(path: Path) -> list[int]:
    """Which of the grey levels each frame shows."""
    return [round(float(frame.mean()) / 8) for frame in pictures(path, 16)]


@pytest.mark.parametrize("gop", [1, 2, 5, 16])
def test_a_key_frame_stands_every_gop_frames_and_nowhere_else(tmp_path, gop):
    source = write_video(tmp_path / "a.mkv", 40, bf="3")
    path = made(transcode(str(source), 40, 25.0, Encoding(gop=gop)), tmp_path / "b.mp4")
    assert [number for number, key in packets(path) if key] == list(range(0, 40, gop))


def test_the_index_stands_before_the_pictures(tmp_path):
    content = transcode(str(write_video(tmp_path / "a.mkv", 12)), 12, 25.0, Encoding())
    assert 0 < content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((1280, 720), 256, (456, 256)),  # 455.1
        ((720, 1280), 256, (256, 456)),
        ((320, 240), 256, (320, 240)),
        ((320, 241), 256, (320, 240)),
        ((320, 241), 0, (320, 240)),
        ((1, 1), 0, (2, 2)),
        ((4000, 16), 256, (4000, 16)),
    ],
)
def test_sizes_shrink_to_the_short_side_and_are_even(size, short_side, expected):
    assert fitted(size[0], size[1], short_side) == expected


def test_a_transcoded_video_shows_the_same_pictures_at_the_same_places(tmp_path):
    moving = Scene("circle", "red", "large", "left", "quickly", "navy", "plain", seed=(0, 0, 0))
    drawn = draw(moving)
    source = made(encode(drawn), tmp_path / "a.mp4")
    path = made(transcode(str(source), len(drawn), 16.0, Encoding(48)), tmp_path / "b.mp4")
    small = np.stack([cv2.resize(picture, (48, 48), interpolation=cv2.INTER_AREA) for picture in drawn])
    found = pictures(path, 48).astype(np.float32)
    assert found.shape == small.shape
    away = np.abs(found[:, None] - small).mean(axis=(2, 3, 4))  # of each picture, from each drawn one
    assert away.diagonal().mean() < 4
    assert away.argmin(axis=1).tolist() == list(range(len(small)))


@pytest.mark.parametrize("full", [False, True])
def test_levels_stay_what_training_makes_of_them_whatever_the_tags_say(tmp_path, full):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p" if full else "yuv420p"
        stream.codec_context.colorspace = 1  # BT.709
        for shade in ((200, 30, 30), (20, 180, 60), (40, 60, 220)):
            picture = np.full((64, 64, 3), shade, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    path = made(transcode(str(tmp_path / "a.mp4"), 3, 25.0, Encoding()), tmp_path / "b.mp4")
    assert np.abs(pictures(path, 64) - np.float32(pictures(tmp_path / "a.mp4", 64))).max() <= 6


def test_uneven_times_are_kept(tmp_path):
    at = [0, 40, 50, 180, 181, 400, 440]
    source = uneven(tmp_path / "a.mkv", at)
    path = made(transcode(str(source), 7, 25.0, Encoding()), tmp_path / "b.mp4")
    assert times(path) == [Fraction(time, 1000) for time in at]
    assert levels(path) == list(range(7))


def test_at_a_constant_rate_each_tick_shows_the_frame_nearest_to_its_time(tmp_path):
    at = [0, 40, 50, 180, 181, 400, 440]
    source = uneven(tmp_path / "a.mkv", at)
    path = made(transcode(str(source), 7, 25.0, Encoding(frames_per_second=10)), tmp_path / "b.mp4")
    assert times(path) == [Fraction(tick, 10) for tick in range(5)]
    expected = []
    for tick in range(5):  # a frame starts at the tick nearest to its time; the last one to start is shown
        expected.append(max(i for i, time in enumerate(at) if (time + 50) // 100 <= tick))
    assert levels(path) == expected == [1, 2, 4, 4, 6]


def test_a_higher_rate_repeats_frames_and_one_frame_stays_one(tmp_path):
    source = uneven(tmp_path / "a.mkv", [0, 100])
    path = made(transcode(str(source), 2, 10.0, Encoding(frames_per_second=30)), tmp_path / "b.mp4")
    assert levels(path) == [0, 0, 0, 1, 1, 1]
    path = made(transcode(str(source), 1, 100.0, Encoding(frames_per_second=2)), tmp_path / "c.mp4")
    assert levels(path) == [0]


@pytest.mark.parametrize("name", ["reordered.avi", "no_time_stamps.h264"])
def test_without_usable_times_frames_get_the_average_rate_in_their_order(tmp_path, name):
    source = write_video(tmp_path / name, 30, bf="3")
    path = made(transcode(str(source), 30, 20.0, Encoding()), tmp_path / "b.mp4")
    assert times(path) == [Fraction(i, 20) for i in range(30)]
    assert np.abs(pictures(path, 64) - np.float32(pictures(source, 64))).mean() < 8


def test_sound_and_rotation_marks_are_left_out(tmp_path, shared):
    for name in ("decord__video_90.mov", "imageio-binaries__realshort.mp4"):
        source = shared / "data/odd" / name
        probe = probe_file(str(source))
        path = made(transcode(str(source), probe.frames, probe.fps, Encoding()), tmp_path / "b.mp4")
        assert (probe_file(str(path)).width, probe_file(str(path)).height) == (probe.width, probe.height)
        with av.open(str(path)) as container:
            assert [stream.type for stream in container.streams] == ["video"]
            assert {frame.rotation for frame in container.decode(video=0)} == {0}


def test_only_the_usable_frames_go_in_and_too_few_are_an_error(tmp_path):
    source = write_video(tmp_path / "a.mkv", 30)
    path = made(transcode(str(source), 20, 25.0, Encoding()), tmp_path / "b.mp4")
    assert probe_file(str(path)).frames == 20
    with pytest.raises(TranscodeError, match="30 frames decode, 31 did"):
        transcode(str(source), 31, 25.0, Encoding())


def test_the_same_file_gives_the_same_bytes_whatever_lay_in_memory_before(tmp_path):
    source = write_video(tmp_path / "a.mkv", 40, side=128, bf="3")
    code = (
        "import hashlib, sys; from simvtp_ds.data.transcode import Encoding, transcode;"
        "print(hashlib.sha256(transcode(sys.argv[1], 40, 25.0, Encoding(96))).hexdigest())"
    )
    found = set()
    for filling in ("1", "170"):  # glibc fills memory with it as it is handed out
        poison = {"MALLOC_PERTURB_": filling, "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000000"}
        command = [sys.executable, "-c", code, str(source)]
        found.add(subprocess.check_output(command, env=os.environ | poison, text=True, cwd=ROOT).strip())
    found.add(hashlib.sha256(transcode(str(source), 40, 25.0, Encoding(96))).hexdigest())
    assert len(found) == 1


@pytest.mark.parametrize(
    "wrong", [{"short_side": 255}, {"short_side": 8}, {"gop": 0}, {"frames_per_second": -1.0}, {"short_side": -256}]
)
def test_settings_that_cannot_be_are_refused_by_name_and_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"--{name.replace('_', '-')} is {value:g}; give"):
        Encoding(**wrong)
