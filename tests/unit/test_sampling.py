"""Frame numbers and crop boxes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from simvtp_ds.data.manifest import Clip
from simvtp_ds.data.sampling import (
    Box,
    augmented_view,
    centre_box,
    centre_indices,
    random_box,
    random_indices,
    random_view,
    resized_box,
)
from simvtp_ds.data_config import DataConfig
from simvtp_ds.finetune_config import AugmentConfig

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


def test_views_of_pretraining_are_those_of_the_first_release() -> None:
    digest = hashlib.sha256()
    for data in (DataConfig(), DataConfig(flip=True), DataConfig(random_crop=False)):
        for number in range(20):
            view = random_view(data, 3, number % 3, clip(str(number), frames=40 + 5 * number))
            digest.update(str((view.indices.tolist(), tuple(view.box), view.flip)).encode())
            assert view.augmentation == ((), None)
    assert digest.hexdigest() == "79b962b7f98174d990b4effc6d46e19bc3858cf62c797e7ad34a6f6a81b2a979"


SHARES, ASPECTS = (0.08, 1.0), (0.75, 4 / 3)


def torchvision_box(picture: torch.Tensor, area: tuple[float, float], aspect: tuple[float, float]) -> Box:
    return Box(*RandomResizedCrop.get_params(picture, list(area), list(aspect)))


def farthest(first: np.ndarray, second: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples."""
    places = np.union1d(first, second)
    shares = [np.searchsorted(np.sort(sample), places, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def test_resized_crops_are_distributed_as_those_of_torchvision() -> None:
    rng = generator()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        picture = torch.empty(3, 240, 320)
        theirs = np.array([torchvision_box(picture, SHARES, ASPECTS) for _ in range(3000)])
    ours = np.array([resized_box(rng, 320, 240, SHARES, ASPECTS) for _ in range(3000)])
    # Two samples of 3000 from one distribution are farther apart than 0.05 once in a thousand times.
    measures: list[Callable[[np.ndarray], np.ndarray]] = [lambda boxes, i=i: boxes[:, i] for i in range(4)]
    measures += [lambda boxes: boxes[:, 2] * boxes[:, 3], lambda boxes: boxes[:, 3] / boxes[:, 2]]
    assert max(farthest(measure(ours), measure(theirs)) for measure in measures) < 0.05


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), width=st.integers(1, 2000), height=st.integers(1, 2000))
def test_a_resized_crop_lies_inside_the_picture(seed: int, width: int, height: int) -> None:
    box = resized_box(generator(seed), width, height, SHARES, ASPECTS)
    assert box.top >= 0 and box.height >= 1 and box.top + box.height <= height
    assert box.left >= 0 and box.width >= 1 and box.left + box.width <= width


def test_a_resized_crop_keeps_the_limits_of_area_and_aspect() -> None:
    boxes = np.array([resized_box(generator(seed), 3200, 2400, (0.2, 0.5), (0.5, 2.0)) for seed in range(300)])
    areas, aspects = boxes[:, 2] * boxes[:, 3] / (3200 * 2400), boxes[:, 3] / boxes[:, 2]
    assert 0.199 < areas.min() < 0.22 and 0.48 < areas.max() < 0.501
    assert 0.499 < aspects.min() < 0.53 and 1.9 < aspects.max() < 2.01


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (301, 200), (201, 300)])
def test_where_no_crop_fits_the_largest_central_one_is_taken_as_in_torchvision(size: tuple[int, int]) -> None:
    width, height = size
    area, aspect = ((0.999, 1.0), (1.0, 1.0)) if max(size) < 900 else (SHARES, (2.0, 2.5))
    if size == (10, 1000):
        aspect = (0.2, 0.5)
    assert resized_box(generator(), width, height, area, aspect) == torchvision_box(
        torch.empty(3, height, width), area, aspect
    )


def test_a_fine_tuning_view_shows_the_frames_of_pretraining_and_another_crop() -> None:
    data, augment = DataConfig(), AugmentConfig(erase=1.0)
    own = clip(frames=5000)
    before, view = random_view(data, 3, 1, own), augmented_view(data, augment, 3, 1, own)
    assert view.indices.tolist() == before.indices.tolist() and view.box != before.box and not view.flip
    assert view.augmentation.erasing is not None
    assert augmented_view(data, augment, 3, 1, own)[1:] == view[1:]
    others = [augmented_view(data, augment, 4, 1, own), augmented_view(data, augment, 3, 2, own)]
    assert all(other.box != view.box and other.augmentation != view.augmentation for other in others)
    still = augmented_view(DataConfig(random_crop=False), AugmentConfig(operations=0, erase=0.0), 3, 1, own)
    assert still.box == centre_box(320, 240) and still.augmentation == ((), None)
