"""Ranks and recalls against sorting and against torchmetrics."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.retrieval import RetrievalRecall

from simvtp_ds.evaluation.ranks import optimistic_ranks, ranks, score_both_ways, scores


def similarities(queries: int, items: int, levels: int = 0, seed: int = 0) -> torch.Tensor:
    """Random [queries, items]; of `levels` different values where that is not 0, so that ties occur."""
    generator = torch.Generator().manual_seed(seed)
    if levels:
        return torch.randint(levels, (queries, items), generator=generator).float()
    return torch.randn(queries, items, generator=generator)


def sorted_place(row: list[float], own: int, own_is_last: bool) -> int:
    """Place of the own item after sorting; among equals it is put last or first."""
    order = sorted(range(len(row)), key=lambda i: (-row[i], (i == own) == own_is_last))
    return order.index(own) + 1


@pytest.mark.parametrize("levels", [0, 4])
def test_ranks_are_those_of_sorting(levels: int) -> None:
    similarity = similarities(30, 20, levels)
    own = torch.randint(20, (30,), generator=torch.Generator().manual_seed(1))
    rows = [(row.tolist(), int(i)) for row, i in zip(similarity, own, strict=True)]
    assert ranks(similarity, own).tolist() == [sorted_place(row, i, own_is_last=True) for row, i in rows]
    assert optimistic_ranks(similarity, own).tolist() == [sorted_place(row, i, own_is_last=False) for row, i in rows]


def test_a_model_that_likes_everything_equally_is_ranked_last() -> None:
    own = torch.arange(7)
    assert ranks(torch.zeros(7, 7), own).tolist() == [7] * 7
    assert optimistic_ranks(torch.zeros(7, 7), own).tolist() == [1] * 7


def test_recalls_are_those_of_torchmetrics() -> None:
    similarity = similarities(40, 40) + 1.5 * torch.eye(40)
    found = score_both_ways(similarity)
    for way, matrix in (("t2v", similarity), ("v2t", similarity.T)):
        for k in (1, 5, 10):
            metric = RetrievalRecall(top_k=k)
            indexes = torch.arange(40)[:, None].expand(40, 40)
            metric.update(matrix.flatten(), torch.eye(40, dtype=torch.bool).flatten(), indexes=indexes.flatten())
            assert found[way][f"R@{k}"] == pytest.approx(100 * float(metric.compute()), abs=1e-4)
    assert found["t2v"] != found["v2t"]


def test_the_median_of_an_even_number_is_between_the_middle_two() -> None:
    found = scores(torch.tensor([1, 2, 7, 90]))
    assert found["MdR"] == 4.5
    assert found["MnR"] == 25.0
    assert (found["R@1"], found["R@5"], found["R@10"]) == (25.0, 50.0, 75.0)


def test_similarities_that_are_not_finite_are_refused() -> None:
    similarity = torch.eye(3)
    similarity[1, 2] = float("nan")
    with pytest.raises(ValueError, match="1 of 9 similarities"):
        score_both_ways(similarity)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="one caption for each video"):
        score_both_ways(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="expected"):
        ranks(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="no query"):
        scores(torch.empty(0, dtype=torch.int64))
