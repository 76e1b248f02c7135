"""Which frames of a file and which part of the picture a clip shows: decided here, read by the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simvtp_ds.config import DataConfig
from simvtp_ds.data.order import stream

if TYPE_CHECKING:
    from simvtp_ds.data.manifest import Clip

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


def random_view(data: DataConfig, seed: int, epoch: int, clip: Clip) -> View:
    """The view of a training clip: a pure function of the settings, (seed, epoch, clip id) and the file's size."""
    name = clip.clip_id
    indices = random_indices(stream(seed, epoch, name, "frames"), clip.frames, data.num_frames, data.frame_stride)
    if data.random_crop:
        rng = stream(seed, epoch, name, "crop")
        box = random_box(rng, clip.width, clip.height, data.image_size, data.crop_scales)
    else:
        box = centre_box(clip.width, clip.height)
    return View(indices, box, data.flip and bool(stream(seed, epoch, name, "flip").integers(2)))


def random_indices(rng: np.random.Generator, frames: int, num_frames: int, stride: int) -> np.ndarray:
    """Frame numbers int64 [num_frames], `stride` apart, the start drawn uniformly among those that fit the file.

    A file with fewer than (num_frames - 1) * stride + 1 frames starts at 0 and repeats its last frame.
    """
    starts = max(1, frames - (num_frames - 1) * stride)
    return _span(int(rng.integers(starts)), frames, num_frames, stride)


def centre_indices(frames: int, num_frames: int, stride: int) -> np.ndarray:
    """Frame numbers int64 [num_frames], `stride` apart, from the middle of the file; nothing is drawn (evaluation)."""
    starts = max(1, frames - (num_frames - 1) * stride)
    return _span((starts - 1) // 2, frames, num_frames, stride)


def _span(start: int, frames: int, num_frames: int, stride: int) -> np.ndarray:
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


def centre_box(width: int, height: int) -> Box:
    """The square of the short side in the middle of the picture; nothing is drawn."""
    short = min(width, height)
    return Box((height - short) // 2, (width - short) // 2, short, short)
