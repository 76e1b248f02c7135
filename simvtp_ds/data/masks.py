"""Tube masks: which tokens of a clip the encoder sees and which it has to rebuild."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from einops import rearrange

from simvtp_ds.data.order import stream


def tube_mask(rng: np.random.Generator, grid: tuple[int, int, int], ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """One random spatial mask, the same at every time step (VideoMAE): `visible` int64 [Nv] and `hidden` int64 [Nh].

    Args:
        rng: Where the mask is drawn from.
        grid: Tokens (t, h, w); indices count in that order, ascending.
        ratio: Share of the h * w patches that is hidden, rounded down to whole patches; 0 <= ratio < 1.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"masks.tube_ratio is {ratio}; expected 0 <= ratio < 1, or the encoder sees nothing")
    t, h, w = grid
    patches = rng.permutation(h * w)
    count = int(ratio * h * w)
    hidden, visible = np.sort(patches[:count]), np.sort(patches[count:])
    return _repeat(visible, t, h * w), _repeat(hidden, t, h * w)


def tube_masks(
    clip_ids: Sequence[str], grid: tuple[int, int, int], ratio: float, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """`tube_mask` for each clip, drawn from the clip's `stream`: `visible` int64 [B, Nv] and `hidden` int64 [B, Nh]."""
    pairs = [tube_mask(stream(seed, epoch, clip_id, "tube"), grid, ratio) for clip_id in clip_ids]
    return np.stack([visible for visible, _ in pairs]), np.stack([hidden for _, hidden in pairs])


def _repeat(patches: np.ndarray, t: int, area: int) -> np.ndarray:
    """Token indices [t * n] of the patches [n] of one time step."""
    steps = area * np.arange(t, dtype=np.int64)
    return rearrange(steps[:, None] + patches[None, :], "t n -> (t n)")
