"""Ranks and recalls from a matrix of similarities, several captions a video allowed.

Dimensions: Q captions, V videos. Text to video: every caption is a query. Video to text: the best placed of a video's
own captions counts, and its other captions are no competitors (the rule of MSVD and VATEX results).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RECALLS = (1, 5, 10)


class Ranks(NamedTuple):
    """Place of each query's own item among the items, 1 is best."""

    against: Tensor  # int64, ties broken against us: the own item stands last among equals
    favour: Tensor  # int64, the own item first among equals; where the two differ, the scores hang on ties


def text_to_video(similarity: Tensor, video_of_caption: Tensor, found: Tensor | None = None) -> Ranks:
    """Rank of each caption's own video, int64 [Q].

    So a model that gives every pair the same similarity scores chance at best, not 100 %.

    Args:
        similarity: float [Q, V], larger is nearer.
        video_of_caption: int64 [Q].
        found: bool [V], False for videos without an embedding: each is behind all others, also for its own captions,
            and what the matrix holds for it is not read.

    Raises:
        ValueError: a similarity is not finite (its rank would mean nothing), or the shapes do not fit.
    """
    similarity, found = _checked(similarity, video_of_caption, found)
    own = similarity.gather(1, video_of_caption[:, None])
    last = torch.full_like(video_of_caption, similarity.shape[1])
    hit = found[video_of_caption]
    against = (similarity >= own).sum(dim=1)
    favour = (similarity > own).sum(dim=1) + 1
    return Ranks(torch.where(hit, against, last), torch.where(hit, favour, last))


def video_to_text(similarity: Tensor, video_of_caption: Tensor, found: Tensor | None = None) -> Ranks:
    """Rank of each video's best placed own caption among it and the captions of other videos, int64 [V].

    Arguments and errors as for `text_to_video`. A video that is not found stands behind every caption.
    """
    similarity, found = _checked(similarity, video_of_caption, found)
    best = own_best(similarity, video_of_caption)
    other = video_of_caption[:, None] != torch.arange(similarity.shape[1], device=similarity.device)
    last = other.sum(dim=0) + 1
    against = ((similarity >= best) & other).sum(dim=0) + 1
    favour = ((similarity > best) & other).sum(dim=0) + 1
    return Ranks(torch.where(found, against, last), torch.where(found, favour, last))


def own_best(similarity: Tensor, video_of_caption: Tensor) -> Tensor:
    """The largest similarity of each video to its own captions: [Q, V] and int64 [Q] to [V]."""
    own = similarity.gather(1, video_of_caption[:, None])[:, 0]
    return own.new_full(similarity.shape[1:], -torch.inf).scatter_reduce(0, video_of_caption, own, "amax")


def _checked(similarity: Tensor, video_of_caption: Tensor, found: Tensor | None) -> tuple[Tensor, Tensor]:
    """The similarities with missing videos at -inf, and which videos are there."""
    if similarity.ndim != 2 or video_of_caption.shape != similarity.shape[:1]:
        raise ValueError(
            f"similarity has shape {tuple(similarity.shape)} and video_of_caption {tuple(video_of_caption.shape)}: "
            "expected [Q, V] and [Q]"
        )
    videos = similarity.shape[1]
    if not bool((torch.bincount(video_of_caption, minlength=videos) > 0).all()) or len(video_of_caption) == 0:
        raise ValueError("there is a video without a caption, or no query to score at all")
    if found is None:
        found = torch.ones(videos, dtype=torch.bool, device=similarity.device)
    wrong = ~similarity.isfinite() & found
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} of {similarity.numel()} similarities are not finite: the weights are damaged"
        )
    return similarity.masked_fill(~found, -torch.inf), found


def scores(places: Tensor) -> dict[str, float]:
    """Recalls R@1, R@5, R@10 in percent, median rank MdR and mean rank MnR of ranks int64 [n].

    Of an even number of ranks the median is the mean of the middle two.
    """
    if places.numel() == 0:
        raise ValueError("there is no query to score")
    ordered = places.double().sort().values
    count = len(ordered)
    median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    found = {f"R@{k}": float(100 * (ordered <= k).double().mean()) for k in RECALLS}
    return {**found, "MdR": float(median), "MnR": float(ordered.mean())}
