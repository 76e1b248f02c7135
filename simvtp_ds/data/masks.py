"""Tube masks: which tokens of a clip the encoder sees and which it has to rebuild."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor


def hidden_patches(rng: np.random.Generator, area: int, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """A random share of the patches of one time step: the others int64 [n] and the hidden ones int64 [m], ascending.

    Args:
        rng: Where the mask is drawn from.
        area: Patches of a time step, h * w.
        ratio: Share that is hidden, rounded down to whole patches; 0 <= ratio < 1.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"masks.tube_ratio is {ratio}; expected 0 <= ratio < 1, or the encoder sees nothing")
    patches = rng.permutation(area)
    count = int(ratio * area)
    return np.sort(patches[count:]), np.sort(patches[:count])


def tube_masks(
    streams: Iterable[np.random.Generator], grid: tuple[int, int, int], ratio: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A mask from each of B streams: `visible` int64 [B, Nv] and `hidden` int64 [B, Nh] on `device`, ascending.

    Every mask is the same at each time step (VideoMAE). It is drawn on the host for one time step, and repeated on
    the device. Tokens count in the order (t, h, w) of `grid`.
    """
    t, h, w = grid
    drawn = [hidden_patches(rng, h * w, ratio) for rng in streams]
    visible, hidden = (_repeat(np.stack(patches), t, h * w, device) for patches in zip(*drawn, strict=True))
    return visible, hidden


def _repeat(patches: np.ndarray, t: int, area: int, device: torch.device) -> Tensor:
    """Token indices [B, t * n] of the patches [B, n] of one time step."""
    first = torch.from_numpy(patches)
    if device.type == "cuda":
        first = first.pin_memory().to(device, non_blocking=True)  # a plain copy would wait for the training's kernels
    steps = area * torch.arange(t, device=device)
    return rearrange(steps[:, None] + first[:, None], "b t n -> b (t n)")
