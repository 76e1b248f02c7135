"""From bytes to tokens: patches are gathered first and normalised after, so hidden pixels are never embedded.

Dimensions: B clips, T frames, K gathered tokens of a clip, P = tubelet * patch * patch pixels of a patch, C colours,
D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from simvtp_ds.data.augment import PIXEL_MEAN, PIXEL_STD


def token_grid(num_frames: int, image_size: int, tubelet_size: int, patch_size: int) -> tuple[int, int, int]:
    """Tokens of a clip along time, height and width; ValueError where patches do not fill the clip."""
    if num_frames % tubelet_size or num_frames < tubelet_size:
        raise ValueError(
            f"num_frames is {num_frames}, which tubelets of {tubelet_size} frames do not fill: "
            f"change data.num_frames or model.tubelet_size"
        )
    if image_size % patch_size or image_size < patch_size:
        raise ValueError(
            f"image_size is {image_size}, which patches of {patch_size} pixels do not fill: "
            f"change data.image_size or model.patch_size"
        )
    side = image_size // patch_size
    return num_frames // tubelet_size, side, side


def gather_patches(frames: Tensor, index: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """The patches of `frames` uint8 [B, T, H, W, C] at the tokens `index` int64 [B, K]: uint8 [B, K, P, C].

    Tokens are counted in (t h w) order, pixels of a patch in (frame, row, column) order.
    """
    # The split is a view; only the patches that are asked for are copied.
    grid = _split(frames, tubelet_size, patch_size)
    return rearrange(grid[_places(grid, index)], "b k pt ph pw c -> b k (pt ph pw) c")


def paste_patches(frames: Tensor, index: Tensor, patches: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """A copy of `frames` uint8 [B, T, H, W, C] with `patches` uint8 [B, K, P, C] at the tokens `index` int64 [B, K]."""
    pasted = frames.clone()
    grid = _split(pasted, tubelet_size, patch_size)
    grid[_places(grid, index)] = rearrange(
        patches, "b k (pt ph pw) c -> b k pt ph pw c", pt=tubelet_size, ph=patch_size, pw=patch_size
    )
    return pasted


def _split(frames: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """A view [B, t, h, w, pt, ph, pw, C] of [B, T, H, W, C]."""
    return rearrange(
        frames, "b (t pt) (h ph) (w pw) c -> b t h w pt ph pw c", pt=tubelet_size, ph=patch_size, pw=patch_size
    )


def _places(grid: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices of the first four dimensions of `_split` at the tokens `index` int64 [B, K]."""
    height, width = grid.shape[2:4]
    clip = torch.arange(grid.shape[0], device=grid.device)[:, None]
    return clip, index // (height * width), index // width % height, index % width


def sine_positions(count: int, width: int) -> Tensor:
    """VideoMAE's fixed table, float32 [count, width].

    The angle is position / 10000^(2 (j // 2) / width); column j holds its sine where j is even, its cosine where odd.
    """
    if width % 2:
        raise ValueError(f"the width of a sine-cosine position table must be even, got {width}")
    positions = torch.arange(count, dtype=torch.float64)[:, None]
    pairs = torch.arange(width // 2, dtype=torch.float64)
    angles = positions / torch.pow(torch.tensor(10000.0, dtype=torch.float64), 2 * pairs / width)
    return rearrange([angles.sin(), angles.cos()], "two n pair -> n (pair two)").float()


class PositionTable(nn.Module):
    """Adds a fixed sine-cosine position to each token; a buffer that is computed, not saved."""

    table: Tensor

    def __init__(self, count: int, width: int):
        super().__init__()
        self.register_buffer("table", sine_positions(count, width), persistent=False)

    def forward(self, tokens: Tensor, index: Tensor) -> Tensor:
        """`tokens` [B, K, D] plus the positions `index` int64 [B, K], in the tokens' dtype."""
        return tokens + self.table[index].to(tokens.dtype)


class PatchEmbedding(nn.Linear):
    """Linear embedding of patches; the same as a Conv3d of that kernel and stride, weight [D, (c pt ph pw)]."""

    def __init__(self, tubelet_size: int, patch_size: int, width: int):
        super().__init__(len(PIXEL_MEAN) * tubelet_size * patch_size * patch_size, width)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed `patches` uint8 [B, K, P, C] as [B, K, D] in the dtype of the weights."""
        # Normalised in fp32 whatever the weights are. Python numbers, colour by colour: buffers would be cast with
        # the module (0.485 in fp16), and fresh tensors would have to be copied to the device each time.
        pixels = patches.float() / 255
        colours = [(pixels[..., c] - PIXEL_MEAN[c]) / PIXEL_STD[c] for c in range(len(PIXEL_MEAN))]
        flat = rearrange(colours, "c b k p -> b k (c p)")
        return F.linear(flat.to(self.weight.dtype), self.weight, self.bias)
