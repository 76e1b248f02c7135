"""RandAugment against timm's functions, random erasing against timm's statistics."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing

from simvtp_ds.data.augment import (
    FILL,
    OPERATIONS,
    PIXEL_MEAN,
    PIXEL_STD,
    Augmentation,
    Erasing,
    Operation,
    changed,
    noise,
    random_augmentation,
    random_erasing,
    random_operations,
)
from simvtp_ds.finetune_config import AugmentConfig

ROOT = Path(__file__).parents[2]
TIMM = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
# Noise, darker on one half, that leaves room at both ends.
PICTURE = np.random.default_rng(0).integers(40, 220, (48, 40, 3), dtype=np.uint8)
PICTURE[:, 20:] //= 2


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_operations_are_those_of_timms_increasing_set() -> None:
    assert set(TIMM) == set(OPERATIONS)
    assert sorted(TIMM.values()) == sorted(auto_augment._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize("name", TIMM)
def test_an_operation_gives_the_picture_that_timm_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"img_mean": FILL, "interpolation": Image.Resampling.BILINEAR}
    for level in (0.0, 2.6, 7.0, 7.31, 9.9, 10.0):
        if (name, level) == ("posterize", 10.0):
            continue  # timm asks Pillow for 0 bits, which it refuses
        oracle = auto_augment.AugmentOp(TIMM[name], prob=1.0, magnitude=level, hparams=settings)  # pyright: ignore
        for sign in (1.0, -1.0):
            monkeypatch.setattr(random, "random", lambda sign=sign: 0.0 if sign > 0 else 1.0)
            expected = np.asarray(oracle(Image.fromarray(PICTURE)))
            ours = changed(PICTURE, (Operation(name, OPERATIONS[name][0](level / 10, sign)),))
            np.testing.assert_array_equal(ours, expected, err_msg=f"{level} {sign}")
    if name != "solarize_add":
        assert not np.array_equal(ours, PICTURE)


def test_the_strongest_posterize_keeps_a_bit() -> None:
    strongest = OPERATIONS["posterize"][0](1.0, 1.0)
    np.testing.assert_array_equal(changed(PICTURE, (Operation("posterize", strongest),)), PICTURE & 128)


def test_operations_are_done_one_after_another_and_leave_the_frame_as_it_was() -> None:
    frame = PICTURE.copy()
    both = changed(frame, (Operation("rotate", 20.0), Operation("solarize", 77.0)))
    one = changed(frame, (Operation("rotate", 20.0),))
    np.testing.assert_array_equal(both, changed(one, (Operation("solarize", 77.0),)))
    np.testing.assert_array_equal(frame, PICTURE)
    np.testing.assert_array_equal(changed(frame, ()), PICTURE)
    np.testing.assert_array_equal(changed(frame[:, ::-1], (Operation("invert", 0.0),)), 255 - PICTURE[:, ::-1])


def test_half_of_the_drawn_operations_are_done_each_as_often_as_any_other() -> None:
    drawn = [random_operations(generator(seed), 4, 7.0, 0.5) for seed in range(1500)]
    lengths = np.bincount([len(operations) for operations in drawn], minlength=5)
    expected = 1500 * np.array([1, 4, 6, 4, 1]) / 16
    assert ((lengths - expected) ** 2 / expected).sum() < 18.5  # 4 degrees of freedom, one in a thousand
    names = [operation.name for operations in drawn for operation in operations]
    counts = np.array([names.count(name) for name in OPERATIONS])
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 36.1  # 14 degrees of freedom


def test_levels_are_normal_and_cut_and_signs_are_even() -> None:
    degrees = [
        operation.argument
        for seed in range(3000)
        for operation in random_operations(generator(seed), 4, 7.0, 0.5)
        if operation.name == "rotate"
    ]
    levels = np.abs(degrees) / 3
    assert abs(levels.mean() - 7.0) < 0.1 and abs(levels.std() - 0.5) < 0.08
    assert abs((np.array(degrees) > 0).mean() - 0.5) < 0.1
    wild = [o.argument for s in range(300) for o in random_operations(generator(s), 4, 5.0, 9.0) if o.name == "rotate"]
    assert max(wild) == 30.0 and min(wild) == -30.0 and min(np.abs(wild)) == 0.0


def timm_rectangle(side: int) -> tuple[int, int, int, int] | None:
    """Where timm's module left its mark on a clip of zeros: top, left, height, width."""
    marked = RandomErasing(1.0, mode="pixel", device="cpu")(torch.zeros(1, side, side))[0] != 0
    rows, columns = torch.where(marked.any(1))[0], torch.where(marked.any(0))[0]
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


def test_rectangles_are_distributed_as_those_of_timm() -> None:
    state, torch_state = random.getstate(), torch.get_rng_state()
    random.seed(0)
    torch.manual_seed(0)
    theirs = np.array([box for _ in range(2500) if (box := timm_rectangle(64))])
    random.setstate(state)
    torch.set_rng_state(torch_state)
    rng = generator()
    ours = np.array([erasing[:4] for _ in range(2500) if (erasing := random_erasing(rng, 64, 64))])
    for measure in (*(lambda boxes, i=i: boxes[:, i] for i in range(4)), lambda boxes: boxes[:, 2] * boxes[:, 3]):
        places = np.union1d(measure(ours), measure(theirs))
        shares = [np.searchsorted(np.sort(measure(b)), places, side="right") / len(b) for b in (ours, theirs)]
        assert np.abs(shares[0] - shares[1]).max() < 0.055  # two such samples: one in a thousand


def test_noise_has_the_mean_and_deviation_of_imagenet_and_differs_from_frame_to_frame() -> None:
    erasing = Erasing(3, 4, 60, 70, seed=5)
    drawn = noise(erasing, 8)
    assert drawn.shape == (8, 60, 70, 3) and drawn.dtype == np.uint8
    oracle = (torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(PIXEL_STD)).add(
        torch.tensor(PIXEL_MEAN)
    )
    expected = (oracle * 255).round().clamp(0, 255)
    np.testing.assert_allclose(drawn.mean((0, 1, 2)), expected.mean(0), atol=1.5)
    np.testing.assert_allclose(drawn.std((0, 1, 2)), expected.std(0), atol=1.5)
    assert not np.array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn, noise(erasing, 8))
    assert not np.array_equal(drawn, noise(erasing._replace(seed=6), 8))


def test_an_augmentation_depends_on_seed_epoch_and_clip_alone_and_obeys_the_settings() -> None:
    config = AugmentConfig(erase=1.0)
    whole = {random_augmentation(config, 64, seed, epoch, name) for seed in (0, 1) for epoch in (0, 1) for name in "ab"}
    assert len(whole) == 8
    assert random_augmentation(config, 64, 1, 1, "b") in whole
    assert random_augmentation(AugmentConfig(operations=0, erase=0.0), 64, 0, 0, "a") == Augmentation()
    erased = [random_augmentation(AugmentConfig(), 64, 0, 0, str(i)).erasing is not None for i in range(1000)]
    assert 0.2 < np.mean(erased) < 0.3


def test_the_fill_is_the_mean_in_bytes() -> None:
    assert tuple(round(255 * mean) for mean in PIXEL_MEAN) == FILL


def test_the_module_loads_no_torch() -> None:
    code = "import simvtp_ds.data.augment, sys; assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
