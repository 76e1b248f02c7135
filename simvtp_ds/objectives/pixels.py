"""Masked video modelling: rebuild the hidden patches, each normalised by itself.

Dimensions: B clips, Nh hidden tokens of a clip, S pixels of a patch, C colours, P = S * C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

STD_EPS = 1e-6


def pixel_target(patches: Tensor) -> Tensor:
    """What is to be rebuilt: uint8 patches [B, Nh, S, C] to float32 [B, Nh, P], laid out (pt ph pw c).

    Each patch and colour: (x - mean) / (std + 1e-6) over its S pixels, x in [0, 1], unbiased std (VideoMAE).
    """
    pixels, mean, scale = _moments(patches)
    return rearrange((pixels - mean) / scale, "b n s c -> b n (s c)")


def pixels_from(rebuilt: Tensor, patches: Tensor) -> Tensor:
    """The way back, as VideoMAE draws it: what was rebuilt, with mean and std of the patches as they really are.

    Args:
        rebuilt: [B, Nh, P], as `pixel_target` lays it out.
        patches: uint8 [B, Nh, S, C], the same patches of the clip: their colours are not the model's work.

    Returns:
        uint8 [B, Nh, S, C]
    """
    _, mean, scale = _moments(patches)
    pixels = rearrange(rebuilt.float(), "b n (s c) -> b n s c", c=patches.shape[-1]) * scale + mean
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def _moments(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of uint8 [B, Nh, S, C]: pixels in [0, 1] of that shape, and of each patch and colour mean and std + 1e-6."""
    pixels = patches.float() / 255
    mean = pixels.mean(dim=-2, keepdim=True)
    return pixels, mean, pixels.std(dim=-2, keepdim=True, unbiased=True) + STD_EPS


def pixel_loss(rebuilt: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of [B, Nh, P] against [B, Nh, P]: float32 []."""
    return F.mse_loss(rebuilt.float(), target.float())
