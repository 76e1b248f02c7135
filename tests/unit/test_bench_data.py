"""The bench of the data side: what it refuses, and that it credits nobody for wrong frames. No time is asserted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simvtp_ds.bench.cases import BenchError, Case, draw_clips, file_set, same_clips
from simvtp_ds.bench.data import parser, run
from simvtp_ds.bench.measure import agreement
from simvtp_ds.bench.readers import BARE, OURS, open_reader
from simvtp_ds.data.manifest import Clip, ManifestError, write_manifest
from simvtp_ds.data.render import encode
from simvtp_ds.data_config import DataConfig


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Three videos of a texture that moves 2 pixels a frame."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    found = []
    for number in range(3):
        texture = rng.integers(0, 256, (12, 40, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        frames = np.stack([texture[:, 2 * t : 2 * t + 128] for t in range(90)])
        path = folder / f"{number}.mp4"
        path.write_bytes(encode(frames))
        found.append(Clip(str(number), str(path), 0, path.stat().st_size, "words", 90, 16.0, 128, 96, "h264"))
    return found


def test_frames_beside_the_wanted_ones_are_told_from_the_right_ones(clips: list[Clip]) -> None:
    cases = file_set("clips", clips, DataConfig(image_size=64)).cases
    ours = open_reader(OURS, 64)

    def late(case: Case) -> np.ndarray | None:
        return ours(case._replace(view=case.view._replace(indices=np.minimum(case.view.indices + 1, 89))))

    right, wrong = agreement(ours, cases, ours), agreement(late, cases, ours)
    assert right is not None and right == (0.0, 1.0)
    assert wrong is not None and wrong.mean_difference > 1 and wrong.right_frames < 0.2
    assert agreement(open_reader(BARE, 64), cases, ours) is None


def test_decord_and_opencv_read_the_same_frames(clips: list[Clip]) -> None:
    cases = file_set("clips", clips, DataConfig(image_size=64)).cases
    ours = open_reader(OURS, 64)
    for name in ("decord2", "OpenCV"):
        found = agreement(open_reader(name, 64), cases, ours)
        assert found is not None and found.right_frames == 1.0 and 0 < found.mean_difference < 8, name


def test_the_same_videos_are_drawn_every_time_and_found_again_in_a_packed_set(
    clips: list[Clip], tmp_path: Path
) -> None:
    captions = [*clips, *(replace(clip, caption="other words") for clip in clips)]
    write_manifest(tmp_path, captions)
    drawn = draw_clips(tmp_path, 2)
    assert drawn == draw_clips(tmp_path, 2) and len({clip.clip_id for clip in drawn}) == 2
    assert len(draw_clips(tmp_path, 9)) == 3
    assert [clip.clip_id for clip in same_clips(tmp_path, drawn)] == [clip.clip_id for clip in drawn]
    with pytest.raises(BenchError, match="does not hold absent"):
        same_clips(tmp_path, [replace(clips[0], clip_id="absent")])


def test_what_cannot_be_timed_is_an_error_that_says_why(tmp_path: Path) -> None:
    def fails(*arguments: str) -> None:
        run(parser().parse_args(["--out", str(tmp_path / "out"), *arguments]))

    with pytest.raises(ManifestError, match="absent"):
        fails("--manifest", str(tmp_path / "absent"))
    with pytest.raises(BenchError, match="--packed is given without --manifest"):
        fails("--packed", str(tmp_path))
    with pytest.raises(BenchError, match="--clips is 0"):
        fails("--clips", "0")
    with pytest.raises(BenchError, match="--frames is -1"):
        fails("--frames", "-1")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        fails("--out", str(tmp_path / "file"))
    assert not (tmp_path / "out/data.json").exists()
