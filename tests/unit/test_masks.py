"""Tube masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from simvtp_ds.data.masks import rebuilt_half, tube_masks
from simvtp_ds.data.order import view_streams

CPU = torch.device("cpu")


def one_mask(seed: int, grid: tuple[int, int, int], ratio: float) -> tuple[np.ndarray, np.ndarray]:
    visible, hidden = tube_masks([np.random.default_rng(seed)], grid, ratio, CPU)
    return visible[0].numpy(), hidden[0].numpy()


def test_the_mask_hides_the_papers_share_and_repeats_it_at_every_time_step() -> None:
    visible, hidden = one_mask(0, (8, 14, 14), 0.9)
    assert visible.shape == (160,) and hidden.shape == (1408,)
    assert visible.dtype == hidden.dtype == np.int64
    steps = visible.reshape(8, 20)
    for t in range(8):
        np.testing.assert_array_equal(steps[t], steps[0] + t * 196)


def test_visible_and_hidden_are_ascending_and_together_every_token_once() -> None:
    visible, hidden = one_mask(1, (2, 3, 5), 0.5)
    assert (np.diff(visible) > 0).all() and (np.diff(hidden) > 0).all()
    assert sorted([*visible, *hidden]) == list(range(30))
    assert len(hidden) == 2 * 7


def test_every_patch_is_hidden_equally_often() -> None:
    rng = np.random.default_rng(2)
    _, hidden = tube_masks([rng] * 4000, (1, 4, 4), 0.75, CPU)
    counts = np.bincount(hidden.flatten().numpy(), minlength=16)
    assert np.abs(counts / 4000 - 0.75).max() < 0.03


def test_nothing_is_hidden_at_zero_and_everything_is_refused() -> None:
    visible, hidden = one_mask(0, (2, 2, 2), 0.0)
    assert visible.tolist() == list(range(8)) and hidden.size == 0
    with pytest.raises(ValueError, match=r"tube_ratio is 1\.0"):
        one_mask(0, (2, 2, 2), 1.0)


def test_the_masks_of_a_batch_follow_the_clips_not_their_places() -> None:
    def masks(ids: str, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tube_masks(view_streams(5, [(clip_id, epoch) for clip_id in ids], "tube"), (2, 4, 4), 0.75, CPU)

    visible, hidden = masks("abc", 1)
    assert visible.shape == (3, 8) and hidden.shape == (3, 24)
    swapped, _ = masks("ca", 1)
    assert torch.equal(swapped, visible[[2, 0]])
    other, _ = masks("abc", 2)
    assert not torch.equal(other, visible)


def test_the_running_cell_rebuilds_half_of_every_tube_and_goes_on_at_each_step() -> None:
    grid, clips = (8, 14, 14), 6
    streams = [np.random.default_rng(i) for i in range(clips)]
    _, hidden = tube_masks(streams, grid, 0.9, CPU)
    half = rebuilt_half([np.random.default_rng(i) for i in range(clips)], hidden, grid)
    assert half.shape == (clips, 704)
    assert (half.diff(dim=1) > 0).all()
    starts = set()
    for all_hidden, chosen in zip(hidden.tolist(), half.tolist(), strict=True):
        assert set(chosen) < set(all_hidden)
        per_tube = np.bincount([token % 196 for token in chosen], minlength=196)
        assert set(per_tube[sorted({token % 196 for token in all_hidden})]) == {4}
        # Written out: the two places of a cell that are rebuilt at step t, counted row by row, follow each other.
        cells = [
            {2 * (token % 196 // 14 % 2) + token % 14 % 2 for token in chosen if token // 196 == t} for t in range(8)
        ]
        first = next(place for place in range(4) if {place, (place + 1) % 4} == cells[0])
        starts.add(first)
        assert cells == [{(first - t) % 4, (first - t + 1) % 4} for t in range(8)]
    assert len(starts) > 1
    with pytest.raises(ValueError, match="multiple of 4 time steps"):
        rebuilt_half(streams, hidden, (6, 14, 14))
