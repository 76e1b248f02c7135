"""Masked video modelling: rebuild the hidden patches, each normalised by itself.

Dimensions: B clips, Nh hidden tokens of a clip, S pixels of a patch, C colours, P = S * C.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

STD_EPS = 1e-6


def pixel_target(patches: Tensor) -> Tensor:
    """What is to be rebuilt: uint8 patches [B, Nh, S, C] to float32 [B, Nh, P], laid out (pt ph pw c).

    Each patch and colour: (x - mean) / (std + 1e-6) over its S pixels, x in [0, 1], unbiased std (VideoMAE).
    """
    pixels = patches.float() / 255
    mean = pixels.mean(dim=-2, keepdim=True)
    std = pixels.std(dim=-2, keepdim=True, unbiased=True)
    return rearrange((pixels - mean) / (std + STD_EPS), "b n s c -> b n (s c)")


def pixel_loss(rebuilt: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of [B, Nh, P] against [B, Nh, P]: float32 []."""
    return F.mse_loss(rebuilt.float(), target.float())
