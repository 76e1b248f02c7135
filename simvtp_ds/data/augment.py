"""RandAugment and random erasing of a clip: decided in the parent, done in the decoder, one decision for all frames.

RandAugment is timm's rand-m7-n4-mstd0.5-inc1 as VideoMAE fine-tunes with it, except that pictures are sampled
bilinearly (VideoMAE: bicubic, twice the time), uncovered parts get the ImageNet mean (VideoMAE: grey), and it comes
after the crop (VideoMAE: before it), where pictures are smaller. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from simvtp_ds.data.order import stream
from simvtp_ds.finetune_config import AugmentConfig

# ImageNet statistics of red, green and blue in [0, 1]: what VideoMAE was trained with.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
FILL = (124, 116, 104)  # PIXEL_MEAN in bytes
HIGHEST = 10.0  # the end of the scale of strengths in the settings
APPLIED = 0.5  # probability of each drawn operation
ERASED_AREA = (0.02, 1 / 3)  # shares of the picture
ERASED_ASPECT = (0.3, 1 / 0.3)  # height over width
TRIES = 10  # rectangles drawn until one fits


class Operation(NamedTuple):
    """One change of every frame."""

    name: str  # a key of OPERATIONS
    argument: float  # degrees, bits, a share, ...; 0 where the operation takes none


class Erasing(NamedTuple):
    """A rectangle, in pixels of the clip, that becomes noise in all frames."""

    top: int
    left: int
    height: int
    width: int
    seed: int  # of the noise


class Augmentation(NamedTuple):
    """What happens to a clip after it was cropped, resized and mirrored."""

    operations: tuple[Operation, ...] = ()
    erasing: Erasing | None = None


def _nothing(strength: float, sign: float) -> float:
    return 0.0


def _enhance(strength: float, sign: float) -> float:
    """1 leaves the picture as it is; farther from 1 is stronger."""
    return max(0.1, 1 + sign * 0.9 * strength)


def _signed(highest: float) -> Callable[[float, float], float]:
    return lambda strength, sign: sign * highest * strength


def _affine(picture: Image.Image, *matrix: float) -> Image.Image:
    """The picture read at (a x + b y + c, d x + e y + f)."""
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL)


def _add_to_dark(picture: Image.Image, amount: float) -> Image.Image:
    return picture.point([min(255, value + int(amount)) if value < 128 else value for value in range(256)] * 3)


# Name: (argument of a strength from 0 to 1 and a sign of 1 or -1, change of a picture by that argument).
OPERATIONS: dict[str, tuple[Callable[[float, float], float], Callable[[Image.Image, float], Image.Image]]] = {
    "autocontrast": (_nothing, lambda picture, _: ImageOps.autocontrast(picture)),
    "equalize": (_nothing, lambda picture, _: ImageOps.equalize(picture)),
    "invert": (_nothing, lambda picture, _: ImageOps.invert(picture)),
    "rotate": (_signed(30), lambda picture, a: picture.rotate(a, Image.Resampling.BILINEAR, fillcolor=FILL)),
    "posterize": (
        lambda strength, _: max(1, 4 - int(4 * strength)),  # Pillow refuses 0 bits, where timm's table ends
        lambda picture, bits: ImageOps.posterize(picture, int(bits)),
    ),
    "solarize": (
        lambda strength, _: 256 - int(256 * strength),
        lambda picture, threshold: ImageOps.solarize(picture, int(threshold)),
    ),
    "solarize_add": (lambda strength, _: int(110 * strength), _add_to_dark),
    "color": (_enhance, lambda picture, factor: ImageEnhance.Color(picture).enhance(factor)),
    "contrast": (_enhance, lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor)),
    "brightness": (_enhance, lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor)),
    "sharpness": (_enhance, lambda picture, factor: ImageEnhance.Sharpness(picture).enhance(factor)),
    "shear_x": (_signed(0.3), lambda picture, share: _affine(picture, 1, share, 0, 0, 1, 0)),
    "shear_y": (_signed(0.3), lambda picture, share: _affine(picture, 1, 0, 0, share, 1, 0)),
    "translate_x": (_signed(0.45), lambda picture, share: _affine(picture, 1, 0, share * picture.width, 0, 1, 0)),
    "translate_y": (_signed(0.45), lambda picture, share: _affine(picture, 1, 0, 0, 0, 1, share * picture.height)),
}


def random_augmentation(config: AugmentConfig, size: int, seed: int, epoch: int, clip_id: str) -> Augmentation:
    """What happens to a clip of `size` x `size` pixels: a pure function of the settings and (seed, epoch, clip id)."""
    operations = random_operations(
        stream(seed, epoch, clip_id, "augment"), config.operations, config.magnitude, config.magnitude_std
    )
    rng = stream(seed, epoch, clip_id, "erase")
    return Augmentation(operations, random_erasing(rng, size, size) if rng.random() < config.erase else None)


def random_operations(rng: np.random.Generator, count: int, magnitude: float, std: float) -> tuple[Operation, ...]:
    """`count` operations, drawn with replacement, each kept with probability 0.5.

    Drawn for each of them, kept or not, in this order: which, whether it is kept, its strength (normal, cut to
    0 .. 10), its sign.
    """
    names = list(OPERATIONS)
    operations = []
    for _ in range(count):
        name = names[rng.integers(len(names))]
        kept = rng.random() < APPLIED
        strength = min(max(rng.normal(magnitude, std), 0.0), HIGHEST) / HIGHEST
        sign = 1.0 if rng.integers(2) else -1.0
        if kept:
            operations.append(Operation(name, OPERATIONS[name][0](strength, sign)))
    return tuple(operations)


def random_erasing(rng: np.random.Generator, height: int, width: int) -> Erasing | None:
    """A rectangle smaller than the picture both ways (timm's RandomErasing); None if none of ten fits.

    Drawn in this order: area (uniform) and aspect (log-uniform) until they fit, top, left, seed of the noise.
    """
    for _ in range(TRIES):
        area = height * width * rng.uniform(*ERASED_AREA)
        aspect = math.exp(rng.uniform(math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return Erasing(top, left, h, w, int(rng.integers(2**63)))
    return None


def changed(picture: np.ndarray, operations: tuple[Operation, ...]) -> np.ndarray:
    """A frame, uint8 [H, W, 3], after the operations."""
    if not operations:
        return picture
    image = Image.fromarray(picture)
    for name, argument in operations:
        image = OPERATIONS[name][1](image, argument)
    return np.asarray(image)


def noise(erasing: Erasing, num_frames: int) -> np.ndarray:
    """What fills the rectangle, uint8 [T, height, width, 3]: each value normal with ImageNet's mean and deviation.

    Every frame has its own (VideoMAE); values that a byte cannot hold are cut.
    """
    rng = np.random.Generator(np.random.Philox(erasing.seed))
    drawn = rng.standard_normal((num_frames, erasing.height, erasing.width, 3), dtype=np.float32)
    values = 255 * (np.array(PIXEL_MEAN, np.float32) + np.array(PIXEL_STD, np.float32) * drawn)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
