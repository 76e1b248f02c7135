"""Scores of embeddings, in columns that are told apart: single view, dual softmax, several views.

Dimensions: Q captions, V videos.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simvtp_ds.data.text import Tokenizer
from simvtp_ds.data.videos import Videos
from simvtp_ds.data_config import DataConfig
from simvtp_ds.engine.ranks import Control, Rank
from simvtp_ds.evaluation.bootstrap import Bootstrap
from simvtp_ds.evaluation.embed import Embeddings, embed
from simvtp_ds.evaluation.ranks import Ranks, scores, text_to_video, video_to_text
from simvtp_ds.evaluation.share import Share
from simvtp_ds.progress import OnProgress

WAYS = ("t2v", "v2t")


def validate(
    model: Any,
    videos: Videos,
    tokenizer: Tokenizer,
    data: DataConfig,
    rank: Rank,
    control: Control,
    on_progress: OnProgress = lambda done, total: None,
) -> dict[str, Any]:
    """`score` of a model in training on held-out videos, one view each; every rank calls it."""
    share = Share(rank.rank, rank.world_size, control.gather)
    return score(embed(model, tokenizer, data, videos, segments=1, crops=1, share=share, on_progress=on_progress))


def score(embeddings: Embeddings) -> dict[str, dict[str, Any]]:
    """Scores of the middle view, both ways; see `summarise`. A missing video counts as a miss both ways.

    Returns:
        {"t2v": scores of text to video, "v2t": of video to text}
    """
    similarity = similarities(embeddings.texts, embeddings.middle)
    return summarise(similarity, similarity, embeddings, Bootstrap(len(embeddings.found)))


def score_columns(embeddings: Embeddings, temperature: float, bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """`score` for each way of comparing.

    Args:
        embeddings: The set.
        temperature: Of the dual softmax: the one that the model was trained with.
        bootstrap: The resamples of this many videos.

    Returns:
        "raw" (the middle view), "dual_softmax" (the same, sharpened by what the other queries ask for), and, where
        there are several views, "multi_view" (their average); each with "t2v" and "v2t".
    """
    raw = similarities(embeddings.texts, embeddings.middle)
    columns = {
        "raw": summarise(raw, raw, embeddings, bootstrap),
        "dual_softmax": summarise(*dual_softmax(raw, embeddings.found, temperature), embeddings, bootstrap),
    }
    if embeddings.average is not None:
        average = similarities(embeddings.texts, embeddings.average)
        columns["multi_view"] = summarise(average, average, embeddings, bootstrap)
    return columns


def similarities(texts: Tensor, videos: Tensor) -> Tensor:
    """Cosines of unit vectors [Q, D] and [V, D]: float64 [Q, V], so that the order of adding up decides no rank."""
    return texts.double() @ videos.double().T


def dual_softmax(similarity: Tensor, found: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Similarities weighted by a softmax over the other side (CAMoE, arXiv 2109.04290): (for t2v, for v2t).

    Text to video: over all captions, so that a video which every caption likes wins less often; video to text: over
    all videos. It looks at all test queries at once, which a real search cannot do.

    Args:
        similarity: [Q, V].
        found: bool [V]; missing videos are left out of the softmax.
        temperature: Of the softmax.
    """
    present = (similarity / temperature).masked_fill(~found, -torch.inf)
    over_videos = similarity * present.softmax(dim=1)
    over_captions = similarity * present.masked_fill(~found, 0.0).softmax(dim=0)
    return over_captions, over_videos


def summarise(for_text: Tensor, for_video: Tensor, embeddings: Embeddings, bootstrap: Bootstrap) -> dict[str, Any]:
    """Scores both ways from two matrices [Q, V]: which videos a caption prefers, which captions a video prefers.

    Returns:
        For "t2v" and "v2t": R@1, R@5, R@10 in percent, MdR, MnR with ties broken against us; "optimistic": the same
        with ties in our favour; "interval": for each recall [low, high] of its 95 % bootstrap interval.
    """
    owners, found = embeddings.video_of_caption, embeddings.found

    def one_way(ranks: Ranks, videos: Tensor) -> dict[str, Any]:
        return {
            **scores(ranks.against),
            "optimistic": scores(ranks.favour),
            "interval": bootstrap.intervals(ranks.against, videos),
        }

    return {
        "t2v": one_way(text_to_video(for_text, owners, found), owners),
        "v2t": one_way(video_to_text(for_video, owners, found), torch.arange(len(found))),
    }
