"""Frame numbers and crop boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simvtp_ds.config import DataConfig
from simvtp_ds.data.manifest import Clip
from simvtp_ds.data.sampling import Box, centre_box, centre_indices, random_box, random_indices, random_view

SCALES = (1.0, 0.875, 0.75, 0.66)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def clip(name: str = "c", frames: int = 100, width: int = 320, height: int = 240) -> Clip:
    return Clip(name, f"/{name}.mp4", 0, 1, "a caption", frames, 25.0, width, height, "h264")


def test_every_start_that_fits_is_drawn_and_no_other() -> None:
    rng = generator()
    spans = [random_indices(rng, 66, 16, 4) for _ in range(300)]
    assert {int(span[0]) for span in spans} == {0, 1, 2, 3, 4, 5}
    assert all((np.diff(span) == 4).all() and span[-1] <= 65 for span in spans)


def test_a_short_file_starts_at_zero_and_repeats_its_last_frame() -> None:
    assert random_indices(generator(), 10, 6, 4).tolist() == [0, 4, 8, 9, 9, 9]
    assert centre_indices(1, 4, 4).tolist() == [0, 0, 0, 0]


def test_the_centre_span_leaves_as_much_before_as_after() -> None:
    assert centre_indices(100, 5, 4).tolist() == [41, 45, 49, 53, 57]
    assert centre_indices(17, 5, 4).tolist() == [0, 4, 8, 12, 16]
    assert centre_indices(19, 5, 4).tolist() == [1, 5, 9, 13, 17]


def test_a_file_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="0 frames"):
        centre_indices(0, 16, 4)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), width=st.integers(1, 2000), height=st.integers(1, 2000))
def test_a_crop_lies_inside_the_picture(seed: int, width: int, height: int) -> None:
    box = random_box(generator(seed), width, height, 224, SCALES)
    assert box.top >= 0 and box.height >= 1 and box.top + box.height <= height
    assert box.left >= 0 and box.width >= 1 and box.left + box.width <= width


def test_crops_of_a_256_by_340_picture_are_those_worked_out_by_hand() -> None:
    # Sides of 256: 256, 224, 192, int(168.96) = 168; neighbours may mix.
    pairs = {(256, 256), (256, 224), (224, 256), (224, 224), (224, 192), (192, 224), (192, 192), (192, 168)}
    pairs |= {(168, 192), (168, 168)}
    rng = generator()
    boxes = {random_box(rng, 340, 256, 224, SCALES) for _ in range(8000)}
    assert {(box.height, box.width) for box in boxes} == pairs
    # 168 high and wide: quarter steps of 22 and 43 pixels; corners, edges, centre, and the four between.
    places = {(box.top, box.left) for box in boxes if (box.height, box.width) == (168, 168)}
    assert places == {
        *[(0, 0), (0, 86), (0, 172), (44, 0), (44, 86), (44, 172), (88, 0), (88, 86), (88, 172)],
        *[(22, 43), (22, 129), (66, 43), (66, 129)],
    }


def test_a_side_within_three_pixels_of_the_input_size_becomes_it() -> None:
    assert random_box(generator(), 300, 226, 224, (1.0,))[2:] == (224, 224)
    assert random_box(generator(), 300, 227, 224, (1.0,))[2:] == (227, 227)
    assert random_box(generator(), 300, 223, 224, (1.0,))[2:] == (223, 223)  # never beyond the picture


def test_the_centre_box_is_the_square_of_the_short_side() -> None:
    assert centre_box(640, 360) == Box(0, 140, 360, 360)
    assert centre_box(240, 427) == Box(93, 0, 240, 240)


def test_a_view_depends_on_seed_epoch_and_clip_alone() -> None:
    data = DataConfig(flip=True)

    def key(seed: int, epoch: int, name: str) -> tuple[object, ...]:
        view = random_view(data, seed, epoch, clip(name, frames=5000))
        return (*view.indices.tolist(), *view.box)

    assert key(0, 0, "a") == key(0, 0, "a")
    assert len({key(0, 0, "a"), key(1, 0, "a"), key(0, 1, "a"), key(0, 0, "b")}) == 4


def test_flip_mirrors_half_of_the_clips_and_only_when_asked() -> None:
    on, off = DataConfig(flip=True), DataConfig()
    assert not any(random_view(off, 0, 0, clip(str(i))).flip for i in range(100))
    assert 60 < sum(random_view(on, 0, 0, clip(str(i))).flip for i in range(200)) < 140


def test_without_random_crop_the_centre_is_taken() -> None:
    assert random_view(DataConfig(random_crop=False), 0, 0, clip()).box == Box(0, 40, 240, 240)
