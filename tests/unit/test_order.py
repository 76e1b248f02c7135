"""The data order: permutations without storage, the same for any world size, free to resume anywhere."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simvtp_ds.data.order import Order, micro_batches, micro_rows, replacement_row, stream

FEW = settings(max_examples=50, deadline=None)


@FEW
@given(num_clips=st.integers(1, 3000), share=st.floats(0.01, 1), seed=st.integers(0, 2**40), epoch=st.integers(0, 500))
def test_an_epoch_shows_no_row_twice_and_as_many_as_fit(num_clips: int, share: float, seed: int, epoch: int) -> None:
    global_batch = max(1, int(num_clips * share))
    order = Order(num_clips, global_batch, seed)
    rows = np.concatenate([order.rows(epoch, step) for step in range(order.steps_per_epoch)])
    assert rows.dtype == np.int64
    assert rows.min() >= 0 and rows.max() < num_clips
    assert len(np.unique(rows)) == len(rows) == num_clips // global_batch * global_batch


@FEW
@given(
    world_size=st.sampled_from([1, 2, 3, 4, 6]),
    accumulation=st.sampled_from([1, 2, 4]),
    micro_batch=st.integers(1, 5),
    epoch=st.integers(0, 9),
)
def test_the_ranks_and_micro_batches_of_a_step_together_are_its_global_batch(
    world_size: int, accumulation: int, micro_batch: int, epoch: int
) -> None:
    order = Order(1000, world_size * accumulation * micro_batch, 7)
    rows = order.rows(epoch, 2)
    parts = [micro_rows(rows, m, r, world_size, micro_batch) for m in range(accumulation) for r in range(world_size)]
    np.testing.assert_array_equal(np.concatenate(parts), rows)


@pytest.mark.parametrize(("world_size", "accumulation", "micro_batch"), [(1, 4, 6), (2, 2, 6), (4, 3, 2), (12, 1, 2)])
def test_every_split_of_the_same_global_batch_sees_the_same_rows(
    world_size: int, accumulation: int, micro_batch: int
) -> None:
    assert world_size * accumulation * micro_batch == 24
    by_rank = [
        list(micro_batches(Order(100, 24, 3), accumulation, rank, world_size, 0, 9)) for rank in range(world_size)
    ]
    seen = [by_rank[rank][i][1].rows for i in range(9 * accumulation) for rank in range(world_size)]
    expected = [Order(100, 24, 3).rows(step // 4, step % 4) for step in range(9)]
    np.testing.assert_array_equal(np.concatenate(seen), np.concatenate(expected))


@FEW
@given(start=st.integers(0, 60))
def test_a_resume_at_any_step_goes_on_as_if_never_stopped(start: int) -> None:
    whole = list(micro_batches(Order(50, 12, 1), 2, 1, 3, 0, 60))
    resumed = list(micro_batches(Order(50, 12, 1), 2, 1, 3, start, 60))
    assert [(step, *(part.tolist() for part in draws)) for step, draws in resumed] == [
        (step, *(part.tolist() for part in draws)) for step, draws in whole[2 * start :]
    ]
    assert all((draws.epochs == step // 4).all() for step, draws in resumed)


def test_epochs_and_seeds_shuffle_differently() -> None:
    first = Order(1000, 1000, 0).rows(0, 0)
    assert (first != Order(1000, 1000, 0).rows(1, 0)).mean() > 0.99
    assert (first != Order(1000, 1000, 1).rows(0, 0)).mean() > 0.99


@pytest.mark.parametrize("num_clips", [5, 10, 37])
def test_every_row_comes_to_every_place_about_equally_often(num_clips: int) -> None:
    epochs = 1500
    order = Order(num_clips, num_clips, 11)
    counts = np.zeros((num_clips, num_clips))
    for epoch in range(epochs):
        counts[np.arange(num_clips), order.rows(epoch, 0)] += 1
    expected = epochs / num_clips
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_any_place_of_ten_million_rows_is_found_in_milliseconds() -> None:
    order = Order(10_000_000, 10, 5)
    timings = []
    for step in range(999_990, 1_000_000):
        began = time.perf_counter()
        order.rows(400, step)
        timings.append(time.perf_counter() - began)
    assert min(timings) < 0.01


def test_a_manifest_smaller_than_one_step_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"7 rows, one step needs 8"):
        Order(7, 8, 0)
    with pytest.raises(ValueError, match="steps 0 to 1"):
        Order(17, 8, 0).rows(0, 2)
    with pytest.raises(ValueError, match="outside 8 rows"):
        micro_rows(np.arange(8), 2, 0, 2, 2)


def test_a_stream_depends_on_each_of_its_keys_and_on_nothing_else() -> None:
    def draw(*key: object) -> list[float]:
        return stream(*key).random(4).tolist()  # type: ignore[arg-type]  # keys of mixed types, on purpose

    assert draw(1, 2, "a", "crop") == draw(1, 2, "a", "crop")
    others = [draw(0, 2, "a", "crop"), draw(1, 3, "a", "crop"), draw(1, 2, "b", "crop"), draw(1, 2, "a", "flip")]
    others += [draw(12, 2, "a", "crop"), draw(1, 22, "a", "crop"), draw(1, 2, "ac", "rop")]
    assert len({tuple(values) for values in [*others, draw(1, 2, "a", "crop")]}) == 8


def test_replacements_are_fixed_and_spread_over_the_manifest() -> None:
    rows = [replacement_row(3, 1, 17, attempt, 50) for attempt in range(1, 1000)]
    assert rows == [replacement_row(3, 1, 17, attempt, 50) for attempt in range(1, 1000)]
    assert set(rows) == set(range(50))
