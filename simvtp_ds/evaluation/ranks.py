"""Ranks and recalls from a matrix of similarities.

Dimensions: Q queries, G items of the gallery.
"""

from __future__ import annotations

import torch
from torch import Tensor

RECALLS = (1, 5, 10)


def ranks(similarity: Tensor, own: Tensor) -> Tensor:
    """Place of each query's own item in the gallery, ties broken against us: the own item stands last among equals.

    So a model that gives every pair the same similarity scores chance at best, not 100 %.

    Args:
        similarity: float [Q, G], larger is nearer.
        own: int64 [Q], the item that belongs to each query.

    Returns:
        int64 [Q], 1 is best.

    Raises:
        ValueError: a similarity is not finite (its rank would mean nothing), or the shapes do not fit.
    """
    return (similarity >= _own_similarity(similarity, own)).sum(dim=1)


def optimistic_ranks(similarity: Tensor, own: Tensor) -> Tensor:
    """The same with the own item first among equals; where it differs from `ranks`, the scores hang on ties."""
    return (similarity > _own_similarity(similarity, own)).sum(dim=1) + 1


def _own_similarity(similarity: Tensor, own: Tensor) -> Tensor:
    if similarity.ndim != 2 or own.shape != similarity.shape[:1]:
        raise ValueError(
            f"similarity has shape {tuple(similarity.shape)} and own {tuple(own.shape)}: expected [Q, G] and [Q]"
        )
    if not similarity.isfinite().all():
        count = int((~similarity.isfinite()).sum())
        raise ValueError(f"{count} of {similarity.numel()} similarities are not finite: the weights are damaged")
    return similarity.gather(1, own[:, None])


def scores(places: Tensor) -> dict[str, float]:
    """Recalls R@1, R@5, R@10 in percent, median rank MdR and mean rank MnR of ranks int64 [Q].

    Of an even number of ranks the median is the mean of the middle two.
    """
    if places.numel() == 0:
        raise ValueError("there is no query to score")
    places = places.double()
    found = {f"R@{k}": float(100 * (places <= k).double().mean()) for k in RECALLS}
    return {**found, "MdR": float(torch.quantile(places, 0.5)), "MnR": float(places.mean())}


def score_both_ways(similarity: Tensor) -> dict[str, dict[str, float]]:
    """Scores of text to video (`t2v`) and video to text (`v2t`) from similarities [captions, videos].

    Caption i belongs to video i, and to no other: as many captions as videos.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity has shape {tuple(similarity.shape)}: expected one caption for each video")
    own = torch.arange(similarity.shape[0], device=similarity.device)
    return {"t2v": scores(ranks(similarity, own)), "v2t": scores(ranks(similarity.T, own))}
