"""Corpora mixed by weight: exact shares, epochs of their own, and no state."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simvtp_ds.data.manifest import Clip, Manifest, ManifestError, write_manifest
from simvtp_ds.data.mixture import Mixture, MixtureOrder, deal
from simvtp_ds.data.order import micro_batches

FEW = settings(max_examples=30, deadline=None)
SIZES, COUNTS = [7, 40, 11], [3, 2, 4]  # periods of 9 places


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Packed sets of 3, 5 and 4 clips; one clip id is in all of them."""
    made = []
    for name, size in (("a", 3), ("b", 5), ("c", 4)):
        folder = tmp_path_factory.mktemp("corpora") / name
        folder.mkdir()
        one = Clip("both", f"shards/{name}.tar", 0, 1, name, 40, 25.0, 64, 48, "h264")
        write_manifest(folder, [one, *(replace(one, clip_id=f"{name}{i}") for i in range(1, size))])
        made.append(folder)
    return made


def places(order: MixtureOrder, steps: int) -> list[tuple[int, int]]:
    """(row, epoch) of every place of the first steps."""
    draws = [order.at(step) for step in range(steps)]
    return [(int(row), int(epoch)) for draw in draws for row, epoch in zip(*draw, strict=True)]


@FEW
@given(
    corpora=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6)), min_size=1, max_size=4),
    batch=st.integers(1, 25),
    seed=st.integers(0, 2**40),
)
def test_shares_are_exact_in_every_period_and_each_corpus_has_whole_epochs(
    corpora: list[tuple[int, int]], batch: int, seed: int
) -> None:
    sizes, counts = [size for size, _ in corpora], [count for _, count in corpora]
    order = MixtureOrder(sizes, counts, min(batch, sum(sizes)), seed)
    found = places(order, 200 // order.global_batch + 1)
    ends = np.cumsum(sizes)
    corpus_of = [int(np.searchsorted(ends, row, side="right")) for row, _ in found]
    period = sum(counts)
    for first in range(0, len(found) - period + 1, period):
        assert Counter(corpus_of[first : first + period]) == dict(enumerate(counts))
    for corpus, size in enumerate(sizes):
        own = [place for place, number in zip(found, corpus_of, strict=True) if number == corpus]
        rows = range(int(ends[corpus]) - size, int(ends[corpus]))
        for number in range(0, len(own), size):
            epoch = own[number : number + size]
            assert {e for _, e in epoch} == {number // size}
            assert len({row for row, _ in epoch}) == len(epoch)
            assert {row for row, _ in epoch} <= set(rows)


@FEW
@given(batch=st.integers(1, 40), step=st.integers(0, 10**7))
def test_a_step_asked_for_alone_is_the_same_as_place_by_place(batch: int, step: int) -> None:
    together = MixtureOrder(SIZES, COUNTS, batch, 3).at(step)
    single = MixtureOrder(SIZES, COUNTS, 1, 3)
    alone = [single.at(place) for place in range(step * batch, (step + 1) * batch)]
    assert together.rows.dtype == together.epochs.dtype == np.int64
    assert together.rows.tolist() == [int(draw.rows[0]) for draw in alone]
    assert together.epochs.tolist() == [int(draw.epochs[0]) for draw in alone]


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 4), (2, 2), (4, 3), (12, 1)])
def test_any_number_of_ranks_sees_the_same_steps(world_size: int, accumulation: int) -> None:
    order = MixtureOrder(SIZES, COUNTS, 24, 3)
    by_rank = [list(micro_batches(order, accumulation, rank, world_size, 5, 9)) for rank in range(world_size)]
    seen = [by_rank[rank][i][1] for i in range(4 * accumulation) for rank in range(world_size)]
    for part, expected in zip(
        zip(*seen, strict=True), zip(*(order.at(s) for s in range(5, 9)), strict=True), strict=True
    ):
        np.testing.assert_array_equal(np.concatenate(part), np.concatenate(expected))


def test_periods_epochs_corpora_and_seeds_are_shuffled_differently() -> None:
    order = MixtureOrder([1000, 1000], [500, 500], 1000, 0)
    first, second = order.at(0), order.at(1)
    assert 0.4 < ((first.rows < 1000) == (second.rows < 1000)).mean() < 0.6
    ones, others = (np.concatenate([d.rows for d in (first, second)]) for _ in range(2))
    ones, others = ones[ones < 1000], others[others >= 1000] - 1000
    assert (ones != others).mean() > 0.99  # two corpora of one size do not walk in step
    assert (first.rows != MixtureOrder([1000, 1000], [500, 500], 1000, 1).at(0).rows).mean() > 0.9
    again = order.at(2)
    assert set(again.epochs) == {1} and (again.rows[again.rows < 1000] != first.rows[first.rows < 1000]).mean() > 0.99


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([5], [10_000]),
        ([2, 1], [6666, 3333]),
        ([0.1, 0.2, 0.4], [1428, 2856, 5712]),
        ([1, 10**-3], [9990 // 1001 * 1000, 9990 // 1001]),
        ([1, 3.14159], [2415, 7585]),  # 10,000 / 4.14159 = 2414.5307, rounded
        ([1, 0.9999], [5000, 5000]),
        ([1, 1, 2.99999], [2000, 2000, 6000]),
    ],
)
def test_weights_become_whole_numbers_of_places(weights: list[float], counts: list[int]) -> None:
    assert deal(weights) == counts
    assert sum(counts) <= 10_000


@FEW
@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=8))
def test_rounded_shares_are_less_than_a_place_off(weights: list[float]) -> None:
    counts = deal(weights)
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - sum(counts) * weight / sum(weights)) < 1 + 1e-6


def test_a_corpus_that_would_never_be_shown_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a corpus 1e-06 of the clips, less than one in 10000"):
        deal([1, 10**-6])


def test_a_mixture_reads_as_the_rows_of_one_corpus_after_the_other(folders: list[Path]) -> None:
    mixture = Mixture.open({str(folder): 1.0 for folder in folders})
    rows = [Manifest.open(folder)[row] for folder in folders for row in range(len(Manifest.open(folder)))]
    assert [mixture[index] for index in range(len(mixture))] == rows
    assert rows[3].uri == str(folders[1] / "shards/b.tar")
    for outside in (-1, 12):
        with pytest.raises(IndexError, match="of a mixture of 12 rows"):
            mixture[outside]


def test_a_bad_clip_is_replaced_by_clips_of_its_own_corpus(folders: list[Path]) -> None:
    mixture = Mixture.open({str(folder): 1.0 for folder in folders})
    found = [mixture.replacement(0, epoch, 4, attempt) for epoch in range(70) for attempt in range(1, 4)]
    assert set(found) == {3, 4, 5, 6, 7}
    assert found == [mixture.replacement(0, epoch, 4, attempt) for epoch in range(70) for attempt in range(1, 4)]


def test_a_corpus_without_a_good_clip_or_of_one_video_borrows_from_the_others(folders: list[Path]) -> None:
    mixture = Mixture.open({str(folder): 1.0 for folder in folders})
    assert {mixture.replacement(0, 2, 4, attempt) for attempt in range(4, 400)} == set(range(len(mixture)))


def test_the_fingerprint_tells_corpora_and_shares_apart_but_not_places(folders: list[Path]) -> None:
    def fingerprint(*weights: float, places: list[Path] = folders) -> str:
        return Mixture([Manifest.open(folder) for folder in places], weights).fingerprint

    assert fingerprint(2, 1, 1) == fingerprint(4.0, 2.0, 2.0)
    different = [fingerprint(2, 1, 1), fingerprint(1, 2, 1), fingerprint(2, 1, 1, places=folders[::-1])]
    different += [fingerprint(2, 1, places=folders[:2]), fingerprint(1, places=folders[:1])]
    assert len(set(different)) == 5


def test_each_corpus_has_a_folder_of_its_own_under_a_common_root(folders: list[Path], tmp_path: Path) -> None:
    mixture = Mixture.open({str(folder): 1.0 for folder in folders}, root="s3://bucket/sets/")
    assert [mixture[index].uri for index in (0, 3, 8)] == [f"s3://bucket/sets/{n}/shards/{n}.tar" for n in "abc"]
    with pytest.raises(ValueError, match=r"data.storage.root is /x, .* names are a, a: rename one"):
        Mixture.open({str(folders[0]): 1.0, str(tmp_path / "a"): 1.0}, root="/x")
    with pytest.raises(ManifestError, match="nowhere: no such folder"):
        Mixture.open({str(folders[0]): 1.0, str(tmp_path / "nowhere"): 1.0})


def test_a_step_of_huge_corpora_late_in_the_run_is_found_in_milliseconds() -> None:
    order = MixtureOrder([10_000_000, 2_500_000, 300], deal([5, 4, 1]), 8192, 0)
    timings = []
    for step in range(1_000_000, 1_000_010):
        began = time.thread_time()  # the machine may be busy with something else
        order.at(step)
        timings.append(time.thread_time() - began)
    assert min(timings) < 0.03
    with pytest.raises(ValueError, match="10 rows, one step needs 16"):
        MixtureOrder([4, 6], [1, 1], 16, 0)
