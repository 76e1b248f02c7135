"""Patches, positions and their order, against slow loops and torch's own Conv3d."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from simvtp_ds.data.augment import PIXEL_MEAN, PIXEL_STD
from simvtp_ds.model.patches import (
    PatchEmbedding,
    PositionTable,
    gather_patches,
    paste_patches,
    sine_positions,
    token_grid,
)


def frames(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 4, 12, 16, 3), dtype=torch.uint8, generator=generator)


def test_gathered_patches_are_those_a_loop_cuts_out() -> None:
    clips, index = frames(), torch.tensor([[0, 5, 23], [11, 12, 13]])
    patches = gather_patches(clips, index, tubelet_size=2, patch_size=4)
    assert patches.shape == (2, 3, 32, 3)
    assert patches.dtype == torch.uint8
    rows, columns = 3, 4
    for b in range(2):
        for k in range(3):
            token = int(index[b, k])
            t, y, x = token // (rows * columns), token // columns % rows, token % columns
            cut = clips[b, 2 * t : 2 * t + 2, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
            assert torch.equal(patches[b, k], cut.reshape(32, 3))


def test_patch_embedding_is_a_conv3d_over_normalised_pixels() -> None:
    clips = frames()
    embedding = PatchEmbedding(tubelet_size=2, patch_size=4, width=10)
    every = torch.arange(24).expand(2, 24)
    ours = embedding(gather_patches(clips, every, tubelet_size=2, patch_size=4))

    normalised = (clips.float() / 255 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    kernel = embedding.weight.reshape(10, 3, 2, 4, 4)
    theirs = F.conv3d(rearrange(normalised, "b t h w c -> b c t h w"), kernel, embedding.bias, stride=(2, 4, 4))
    torch.testing.assert_close(ours, rearrange(theirs, "b d t h w -> b (t h w) d"))


def test_pixels_are_normalised_in_fp32_when_the_weights_are_fp16() -> None:
    embedding = PatchEmbedding(tubelet_size=2, patch_size=4, width=96).half()
    with torch.no_grad():
        embedding.weight.copy_(torch.eye(96))
        embedding.bias.zero_()
    patches = torch.full((1, 1, 32, 3), 124, dtype=torch.uint8)
    # 124 / 255 is so close to the mean of red that a mean rounded to fp16 would change the result by a tenth.
    exact = [(124 / 255 - m) / s for m, s in zip(PIXEL_MEAN, PIXEL_STD, strict=True)]
    expected = torch.tensor(exact).half().repeat_interleave(32)
    assert torch.equal(embedding(patches)[0, 0], expected)


def test_position_table_is_the_sine_cosine_table_of_videomae() -> None:
    table = sine_positions(50, 12)
    for position in (0, 1, 49):
        for j in range(12):
            angle = position / 10000 ** (2 * (j // 2) / 12)
            assert table[position, j].item() == pytest.approx(math.cos(angle) if j % 2 else math.sin(angle), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_positions_are_those_of_the_index_and_keep_the_dtype(dtype: torch.dtype) -> None:
    index = torch.tensor([[3, 0], [7, 7]])
    out = PositionTable(8, 4)(torch.zeros(2, 2, 4, dtype=dtype), index)
    assert out.dtype == dtype
    torch.testing.assert_close(out[1, 0], sine_positions(8, 4)[7].to(dtype))
    torch.testing.assert_close(out[0, 1], torch.tensor([0, 1, 0, 1], dtype=dtype))


def test_position_tables_are_computed_and_not_saved() -> None:
    assert not PositionTable(8, 4).state_dict()


def test_grid_counts_tokens_and_refuses_clips_that_patches_do_not_fill() -> None:
    assert token_grid(16, 224, tubelet_size=2, patch_size=16) == (8, 14, 14)
    with pytest.raises(ValueError, match="num_frames is 15"):
        token_grid(15, 224, tubelet_size=2, patch_size=16)
    with pytest.raises(ValueError, match="image_size is 100"):
        token_grid(16, 100, tubelet_size=2, patch_size=16)
    with pytest.raises(ValueError, match="must be even, got 5"):
        sine_positions(4, 5)


def test_pasted_patches_stand_where_a_loop_puts_them() -> None:
    clips, index = frames(), torch.tensor([[0, 5, 23], [11, 12, 13]])
    new = torch.randint(0, 256, (2, 3, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected, rows, columns = clips.clone(), 3, 4
    for b in range(2):
        for k in range(3):
            token = int(index[b, k])
            t, y, x = token // (rows * columns), token // columns % rows, token % columns
            expected[b, 2 * t : 2 * t + 2, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = new[b, k].reshape(2, 4, 4, 3)
    before = clips.clone()
    assert torch.equal(paste_patches(clips, index, new, tubelet_size=2, patch_size=4), expected)
    assert torch.equal(clips, before), "the frames themselves stay as they are"
