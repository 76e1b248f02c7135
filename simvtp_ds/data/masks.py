"""Tube masks: which tokens of a clip the encoder sees and which it has to rebuild."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from simvtp_ds.config import RUNNING_CELL


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


def rebuilt_half(streams: Iterable[np.random.Generator], hidden: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Half of each clip's `hidden` tokens, int64 [B, Nh] to [B, Nh / 2] on its device, ascending.

    VideoMAE V2's running cell (arXiv 2303.16727): of each 2 x 2 cell of patches two are rebuilt, and which two goes on
    by one place at each time step, so that within four steps every patch is rebuilt twice. A tube mask hides whole
    tubes, so this is half of any of them. Where the cell starts is drawn from each clip's stream.

    Args:
        streams: B streams of random numbers.
        hidden: The hidden tokens of tube masks.
        grid: Tokens (t, h, w) of a clip; t is a multiple of 4.
    """
    t, h, w = grid
    if t % RUNNING_CELL:
        raise ValueError(f"a running cell needs a multiple of {RUNNING_CELL} time steps, and a clip has {t}")
    first = torch.from_numpy(np.array([rng.integers(RUNNING_CELL) for rng in streams]))
    if hidden.is_cuda:
        first = first.pin_memory().to(hidden.device, non_blocking=True)
    step, row, column = hidden // (h * w), hidden // w % h, hidden % w
    chosen = (2 * (row % 2) + column % 2 + step + first[:, None]) % RUNNING_CELL < RUNNING_CELL // 2
    # A stable sort puts the chosen first and leaves them ascending; their number is known, so nothing waits.
    order = chosen.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    return hidden.gather(1, order[:, : hidden.shape[1] // 2])


def _repeat(patches: np.ndarray, t: int, area: int, device: torch.device) -> Tensor:
    """Token indices [B, t * n] of the patches [B, n] of one time step."""
    first = torch.from_numpy(patches)
    if device.type == "cuda":
        first = first.pin_memory().to(device, non_blocking=True)  # a plain copy would wait for the training's kernels
    steps = area * torch.arange(t, device=device)
    return rearrange(steps[:, None] + first[:, None], "b t n -> b (t n)")
