"""Which frames of a file and which part of the picture a clip shows: decided here, read by the decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simvtp_ds.data.augment import Augmentation, random_augmentation
from simvtp_ds.data.order import stream
from simvtp_ds.data_config import DataConfig
from simvtp_ds.finetune_config import AugmentConfig

if TYPE_CHECKING:
    from simvtp_ds.data.manifest import Clip

TRIES = 10  # crops drawn until one fits
NEAR = 3  # a crop side nearer than this to the input size becomes the input size and needs no resampling (VideoMAE)


class Box(NamedTuple):
    """A part of the picture, in pixels of the file as decoded (rotation tags are ignored)."""

    top: int
    left: int
    height: int
    width: int


class View(NamedTuple):
    """What a clip shows of its file."""

    indices: np.ndarray  # int64 [T], frame numbers in order of presentation, ascending; short files repeat the last
    box: Box
    flip: bool
    augmentation: Augmentation = Augmentation()  # nothing, as in pre-training and evaluation


def random_view(data: DataConfig, seed: int, epoch: int, clip: Clip) -> View:
    """The view of a pre-training clip: a pure function of the settings, (seed, epoch, clip id) and the file's size."""

    def crop(rng: np.random.Generator) -> Box:
        return random_box(rng, clip.width, clip.height, data.image_size, data.crop_scales)

    return _drawn_view(data, seed, epoch, clip, crop)


def augmented_view(data: DataConfig, augment: AugmentConfig, seed: int, epoch: int, clip: Clip) -> View:
    """The view of a fine-tuning clip: another crop, and RandAugment and erasing; otherwise as `random_view`."""

    def crop(rng: np.random.Generator) -> Box:
        return resized_box(rng, clip.width, clip.height, augment.crop_area, augment.crop_aspect)

    view = _drawn_view(data, seed, epoch, clip, crop)
    return view._replace(augmentation=random_augmentation(augment, data.image_size, seed, epoch, clip.clip_id))


def _drawn_view(
    data: DataConfig, seed: int, epoch: int, clip: Clip, crop: Callable[[np.random.Generator], Box]
) -> View:
    """Frames, `crop` where data.random_crop is true (else the centre), and flip, each from a stream of its own."""
    name = clip.clip_id
    indices = random_indices(stream(seed, epoch, name, "frames"), clip.frames, data.num_frames, data.frame_stride)
    box = crop(stream(seed, epoch, name, "crop")) if data.random_crop else centre_box(clip.width, clip.height)
    return View(indices, box, data.flip and bool(stream(seed, epoch, name, "flip").integers(2)))


def random_indices(rng: np.random.Generator, frames: int, num_frames: int, stride: int) -> np.ndarray:
    """Frame numbers int64 [num_frames], `stride` apart, the start drawn uniformly among those that fit the file.

    A file with fewer than (num_frames - 1) * stride + 1 frames starts at 0 and repeats its last frame.
    """
    starts = max(1, frames - (num_frames - 1) * stride)
    return spaced_indices(int(rng.integers(starts)), frames, num_frames, stride)


def centre_indices(frames: int, num_frames: int, stride: int) -> np.ndarray:
    """Frame numbers int64 [num_frames], `stride` apart, from the middle of the file; nothing is drawn (evaluation)."""
    starts = max(1, frames - (num_frames - 1) * stride)
    return spaced_indices((starts - 1) // 2, frames, num_frames, stride)


def spaced_indices(start: int, frames: int, num_frames: int, stride: int) -> np.ndarray:
    """Frame numbers int64 [num_frames], `stride` apart from `start`; past the file's end its last frame repeats."""
    if frames < 1:
        raise ValueError(f"a file of {frames} frames has nothing to show; leave it out of the manifest")
    return np.minimum(start + stride * np.arange(num_frames, dtype=np.int64), frames - 1)


def random_box(rng: np.random.Generator, width: int, height: int, size: int, scales: tuple[float, ...]) -> Box:
    """Multi-scale crop as VideoMAE trains with it: one of the nearly square sizes at one of 13 fixed places.

    Sides are shares (`scales`) of the short side; height and width may differ by one entry of `scales`. The places
    are those of a 5 x 5 lattice of quarter steps whose row and column are both even or both odd: the corners, the
    middles of the edges, the centre and the four points between centre and corners.
    """
    short = min(width, height)
    sides = [_side(short, size, scale) for scale in scales]
    shapes = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    places = [(i, j) for i in range(5) for j in range(5) if i % 2 == j % 2]
    crop_height, crop_width = shapes[rng.integers(len(shapes))]
    row, column = places[rng.integers(len(places))]
    return Box(row * ((height - crop_height) // 4), column * ((width - crop_width) // 4), crop_height, crop_width)


def _side(short: int, size: int, scale: float) -> int:
    """Side of a crop in pixels: at least 1, and never longer than the short side of the picture."""
    side = max(1, int(short * scale))
    return min(short, size) if abs(side - size) < NEAR else side


def resized_box(
    rng: np.random.Generator, width: int, height: int, area: tuple[float, float], aspect: tuple[float, float]
) -> Box:
    """Random resized crop (Inception; the rule of torchvision's RandomResizedCrop).

    Drawn in this order: area (uniform) and aspect (log-uniform) until they fit, top, left. If none of ten fits: the
    largest central box whose aspect is within the limits.

    Args:
        rng: Where the crop is drawn from.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        area: Least and largest share of the picture.
        aspect: Least and largest width over height.
    """
    low, high = aspect
    for _ in range(TRIES):
        pixels = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    w, h = max(1, min(width, round(height * high))), max(1, min(height, round(width / low)))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def centre_box(width: int, height: int) -> Box:
    """The square of the short side in the middle of the picture; nothing is drawn."""
    short = min(width, height)
    return Box((height - short) // 2, (width - short) // 2, short, short)
