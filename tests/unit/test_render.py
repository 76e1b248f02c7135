"""The drawn corpus."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import av
import numpy as np
import pytest

from simvtp_ds.data.render import SIDE, draw, encode, render_corpus
from simvtp_ds.data.scenes import (
    DEEDS,
    DIRECTIONS,
    GROUND_COLOURS,
    MOTIONS,
    OBJECT_COLOURS,
    SHAPES,
    TEXTURES,
    Scene,
    caption,
    make_scenes,
    training_caption,
)


def scene(**named: str) -> Scene:
    usual = {"shape": "circle", "colour": "red", "size": "small", "motion": "spins", "speed": ""}
    return Scene(**{**usual, "ground": "black", "texture": "plain", **named}, seed=(0, 0, 0))


def centres(frames: np.ndarray, colour: str) -> np.ndarray:
    """Mean (x, y) of the pixels near a colour, for each frame."""
    near = np.abs(frames.astype(int) - np.array(OBJECT_COLOURS[colour])).max(axis=-1) < 30
    return np.array([[np.nonzero(frame)[1].mean(), np.nonzero(frame)[0].mean()] for frame in near])


def area(frames: np.ndarray, colour: str) -> np.ndarray:
    return (np.abs(frames.astype(int) - np.array(OBJECT_COLOURS[colour])).max(axis=-1) < 30).sum(axis=(1, 2))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def render(out: Path, train: int = 3, test: int = 2, seed: int = 0) -> tuple[int, int]:
    return render_corpus(out, train, test, seed, workers=1, on_clip=lambda done, total: None)


def test_no_test_scene_is_named_twice_or_seen_in_training() -> None:
    train, test = make_scenes(2000, 200, seed=0)
    names = {s.named() for s in test}
    assert len(train) == 2000
    assert len(names) == 200
    assert not names & {s.named() for s in train}
    assert len({caption(s) for s in test}) == 200


def test_the_first_clips_do_not_depend_on_how_many_follow() -> None:
    assert make_scenes(5, 20, seed=3)[0] == make_scenes(50, 20, seed=3)[0][:5]
    assert make_scenes(5, 20, seed=3)[0] != make_scenes(5, 20, seed=4)[0]


def test_nothing_round_is_said_to_spin() -> None:
    train, test = make_scenes(2000, 200, seed=0)
    assert not [s for s in train + test if s.motion == "spins" and s.shape == "circle"]
    assert {s.motion for s in train} == set(MOTIONS)


def test_a_caption_names_shape_colours_and_direction() -> None:
    moving = make_scenes(300, 1, seed=1)[0]
    for s in moving:
        words = caption(s).split()
        assert {s.shape, s.colour, s.ground} <= set(words)
        if s.motion in ("left", "right", "up", "down"):
            assert s.motion in words
        if s.speed:
            assert s.speed in words


def test_the_test_clips_answer_every_sentence_of_shape_colour_and_motion() -> None:
    train, test = make_scenes(2000, 200, seed=0)
    assert {(s.shape, s.colour, s.motion) for s in test} == set(DEEDS)
    assert len(DEEDS) == len(SHAPES) * len(OBJECT_COLOURS) * len(MOTIONS) - len(OBJECT_COLOURS)  # no spinning circles
    assert {(s.shape, s.colour, s.motion) for s in train} == set(DEEDS)


def test_more_test_clips_than_can_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match=r"6481 test clips .* there are 6480 that differ"):
        make_scenes(1, 6481, seed=0)


def test_most_training_captions_name_object_and_motion_only() -> None:
    scenes = make_scenes(400, 0, seed=0)[0]
    short = [s for s in scenes if s.ground not in training_caption(s)]
    assert 240 < len(short) < 320
    for s in short:
        words = training_caption(s).split()
        assert words[:3] == ["a", s.colour, s.shape]
        assert s.motion not in DIRECTIONS or words[-1] == s.motion
        assert s.speed == "" or s.speed not in words
    assert all(training_caption(s) == caption(s) for s in scenes if s not in short)


@pytest.mark.parametrize("ground", GROUND_COLOURS)
def test_an_object_is_brighter_than_its_background(ground: str) -> None:
    for texture in TEXTURES:
        for colour in OBJECT_COLOURS:
            frame = draw(scene(colour=colour, ground=ground, texture=texture, size="large"))[0].mean(axis=-1)
            assert frame[SIDE // 2, SIDE // 2] > frame[:8].max() + 10  # the object's middle, a strip of background


@pytest.mark.parametrize(("motion", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)])
def test_an_object_moves_where_its_caption_says(motion: str, axis: int, sign: int) -> None:
    path = centres(draw(scene(motion=motion)), "red")
    moved = path[-1] - path[0]
    assert sign * moved[axis] > 0.3 * SIDE
    assert abs(moved[1 - axis]) < 1


def test_growing_shrinking_and_large_objects_have_the_area_they_are_named_for() -> None:
    grown = area(draw(scene(motion="grows")), "red")
    shrunk = area(draw(scene(motion="shrinks")), "red")
    assert grown[-1] > 3 * grown[0]
    assert shrunk[0] > 3 * shrunk[-1]
    assert area(draw(scene(size="large")), "red")[0] > 3 * area(draw(scene()), "red")[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_drawn(shape: str) -> None:
    assert area(draw(scene(shape=shape, size="large")), "red").min() > 300


def test_a_clip_is_h264_and_looks_like_what_was_drawn() -> None:
    drawn = draw(scene(size="large", ground="navy"))
    with av.open(io.BytesIO(encode(drawn)), mode="r") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
    assert decoded.shape == drawn.shape
    assert np.abs(decoded.astype(int) - drawn).mean() < 8


def test_a_second_rendering_is_the_same_to_the_byte(tmp_path: Path) -> None:
    assert render(tmp_path / "a") == render(tmp_path / "b") == (5, 5)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    captions = json.loads((tmp_path / "a/train.json").read_text())
    assert sorted(captions) == [f"train/0000{i}.mp4" for i in range(3)]


def test_an_interrupted_rendering_draws_only_what_is_missing(tmp_path: Path) -> None:
    render(tmp_path)
    before = digests(tmp_path)
    (tmp_path / "train/00001.mp4").unlink()
    (tmp_path / "corpus.json").write_text((tmp_path / "corpus.json").read_text().replace("true", "false"))
    assert render(tmp_path) == (1, 5)
    assert digests(tmp_path) == before


def test_a_folder_of_another_corpus_is_refused(tmp_path: Path) -> None:
    render(tmp_path)
    with pytest.raises(ValueError, match="another corpus"):
        render(tmp_path, seed=1)
