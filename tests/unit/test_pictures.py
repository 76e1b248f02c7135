"""Clips for pictures: what a person names is decoded as in training, or refused with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simvtp_ds.config import ModelConfig, PretrainConfig
from simvtp_ds.data.manifest import Clip, Manifest, write_manifest
from simvtp_ds.data.render import draw, encode
from simvtp_ds.data.scenes import make_scenes
from simvtp_ds.data.text import train_wordpiece
from simvtp_ds.data_config import DataConfig
from simvtp_ds.engine.ranks import Rank
from simvtp_ds.evaluation.frames import Missing
from simvtp_ds.evaluation.pictures import clip_of_file, decoded, first_clips
from simvtp_ds.evaluation.training_pictures import TrainingPictures
from simvtp_ds.model.simvtp import SimVTP

DATA = DataConfig(num_frames=4, frame_stride=9, image_size=96, workers=1)


class Alone:
    """The agreements of a single rank."""

    def gather(self, value: object) -> list[object]:
        return [value]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    frames = draw(make_scenes(1, 0, seed=0)[0][0])
    path = tmp_path_factory.mktemp("films") / "a film.mp4"
    path.write_bytes(encode(frames))
    return path, frames


def test_a_persons_file_shows_its_middle_and_the_next_clip_is_the_other_video(
    film: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, frames = film
    clip = clip_of_file(path, "a circle", timeout=60)
    assert (clip.clip_id, clip.caption, clip.frames, clip.width) == ("a film.mp4", "a circle", len(frames), 96)
    gone = replace(clip, uri=str(tmp_path / "gone.mp4"))
    missing: dict[int, Missing] = {}
    (one, shown, other), (two, _, first) = decoded([clip, gone, clip], DATA, missing)
    start = (len(frames) - 1 - 27) // 2
    difference = np.abs(shown.astype(int) - frames[start : start + 28 : 9])
    assert difference.mean() < 4, "not the middle of the file"
    assert one == two == clip and other is not None and first is not None
    assert np.array_equal(other, shown)
    assert list(missing) == [1] and "gone.mp4" in missing[1].reason


def test_odd_files_are_shown_or_refused_with_a_reason(shared: Path) -> None:
    odd = shared / "data" / "odd"
    for name, reason in (
        ("DALI_extra__test_1.mp4", "Git LFS pointer"),
        ("mp4parse-rust__sine-3s-xhe-aac-44khz-mono.mp4", "no video stream"),
        ("nowhere.mp4", "file missing"),
    ):
        with pytest.raises(ValueError, match=f"--clip .*{name}: {reason}"):
            clip_of_file(odd / name, "", timeout=60)
    short = clip_of_file(odd / "decord__video_90.mov", "three frames", timeout=60)
    ((_, frames, other),) = decoded([short], DATA, {})
    assert (frames[1:] == frames[1]).all() and frames.std() > 10, "the last frame of a short file repeats"
    assert other is None


def test_the_first_videos_of_a_manifest_come_once_each(tmp_path: Path) -> None:
    one = Clip("", "/x.mp4", 0, 1, "", 40, 25.0, 64, 48, "h264")
    rows = [("a", "1"), ("a", "2"), ("b", "3"), ("a", "4"), ("c", "5")]
    write_manifest(tmp_path, [replace(one, clip_id=video, caption=caption) for video, caption in rows])
    manifest = Manifest.open(tmp_path)
    assert [(c.clip_id, c.caption) for c in first_clips(manifest, 2)] == [("a", "1"), ("b", "3")]
    assert len(first_clips(manifest, 9)) == 3


def test_training_goes_on_without_pictures_where_no_clip_can_be_decoded(tmp_path: Path) -> None:
    write_manifest(tmp_path, [Clip("a", str(tmp_path / "a.mp4"), 0, 1, "a", 40, 25.0, 96, 96, "h264")])
    config = PretrainConfig(data=replace(DATA, manifest=str(tmp_path)))
    pictures = TrainingPictures(config, Manifest.open(tmp_path), train_wordpiece(["a"], 100))
    rank = Rank(rank=0, local_rank=0, world_size=1, local_world_size=1)
    control: object = Alone()
    (line,) = pictures.take(None, 5, rank, control, False, None)  # type: ignore[arg-type]  # agrees with itself
    assert "no pictures: none of the first 1 videos can be decoded" in line and "a.mp4" in line
    assert pictures.take(None, 10, rank, control, False, None) == [], "it is said once"  # type: ignore[arg-type]


def test_a_picture_that_cannot_be_written_is_a_line_and_the_next_one_is_tried(
    film: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    write_manifest(tmp_path, [clip_of_file(film[0], "a red circle", timeout=60)])
    tokenizer = train_wordpiece(["a red circle"], 100)
    sizes = ModelConfig(width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2)
    config = PretrainConfig(data=replace(DATA, manifest=str(tmp_path)), model=sizes)
    pictures = TrainingPictures(config, Manifest.open(tmp_path), tokenizer)
    model = SimVTP(sizes, DATA.num_frames, DATA.image_size, tokenizer.vocab_size)
    rank = Rank(rank=0, local_rank=0, world_size=1, local_world_size=1)
    shown = []

    class Run:
        folder = tmp_path

        class board:  # noqa: N801
            add_image = staticmethod(lambda name, picture, step, dataformats: shown.append((name, step, picture)))

    control: object = Alone()
    in_the_way = tmp_path / "pictures"
    in_the_way.write_text("a file")
    (line,) = pictures.take(model, 5, rank, control, False, Run())  # type: ignore[arg-type]  # agrees with itself
    assert "no picture of step 5" in line and str(in_the_way) in line and "training goes on" in line
    assert shown == [] and in_the_way.read_text() == "a file"
    in_the_way.unlink()
    assert pictures.take(model, 10, rank, control, False, Run()) == []  # type: ignore[arg-type]
    ((name, step, picture),) = shown
    assert (name, step) == ("reconstruction", 10)
    assert np.array_equal(picture, np.asarray(Image.open(in_the_way / "step_00000010.png")))
    assert model.training
