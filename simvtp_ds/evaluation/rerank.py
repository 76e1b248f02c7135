"""The first k places of every query ordered anew by the matching head, which sees video and words together.

Dimensions: Q captions, V videos, P pairs of a caption and a video.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from simvtp_ds.data.text import Tokenizer
from simvtp_ds.data.videos import Videos
from simvtp_ds.data_config import DataConfig
from simvtp_ds.evaluation.compute import computed, evaluating
from simvtp_ds.evaluation.embed import Embeddings, caption_rows, read_captions
from simvtp_ds.evaluation.frames import Missing, Shot, decode_shots
from simvtp_ds.evaluation.retrieval import similarities
from simvtp_ds.evaluation.share import BATCH, Share
from simvtp_ds.evaluation.views import plan_views
from simvtp_ds.progress import OnProgress


def candidates(similarity: Tensor, video_of_caption: Tensor, found: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar items of each query: bool [Q, V] for captions as queries, and for videos as queries.

    At the edge of the k the own item stands behind its equals. Missing videos are nobody's candidates.
    """
    captions = torch.arange(len(similarity))
    handicapped = similarity.clone()
    own = similarity[captions, video_of_caption]
    handicapped[captions, video_of_caption] = own.nextafter(torch.tensor(-torch.inf, dtype=own.dtype))
    handicapped.masked_fill_(~found, -torch.inf)

    def top(scores: Tensor) -> Tensor:
        places = scores.topk(min(k, scores.shape[1]), dim=1).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, places, True)

    return top(handicapped) & found, top(handicapped.T).T & found


def rerank(
    model: Any,
    tokenizer: Tokenizer,
    data: DataConfig,
    videos: Videos,
    embeddings: Embeddings,
    k: int,
    share: Share,
    on_progress: OnProgress = lambda done, total: None,
) -> tuple[Tensor, Tensor, list[Missing]]:
    """Matrices float64 [Q, V] for text to video and for video to text, and the videos that failed; every rank calls it.

    A query's k candidates hold 2 + the probability of a match, all others their cosine: the first k places change
    among themselves, those behind stay as they were. Every needed video is decoded once, its middle view. A video that
    could be embedded but cannot be decoded now matches nothing: probability 0.

    Args:
        model: Has match_pairs(frames, words, word_mask), logits [B, 2] of (another's caption, this one's caption).
        tokenizer, data, videos, share: As for `embed`.
        embeddings: Of the same videos.
        k: Candidates a query.
        on_progress: Told of this rank's pairs.
    """
    similarity = similarities(embeddings.texts, embeddings.middle)
    for_text, for_video = candidates(similarity, embeddings.video_of_caption, embeddings.found, k)
    wanted = for_text | for_video
    rows, _ = caption_rows(videos)
    parts = share.batches(len(videos))
    total, done = int(sum(wanted[:, part.start : part.stop].sum() for part in parts)), 0
    device = next(model.parameters()).device
    missing: dict[int, Missing] = {}
    found: dict[int, np.ndarray] = {}  # first video of a batch -> probabilities of its pairs, videos in order

    def shots(part: range) -> list[Shot]:
        return [
            Shot(video, videos.clip(video), plan_views(videos.clip(video), data, 1, 1)[0].view)
            for video in part
            if wanted[:, video].any()
        ]

    with evaluating(model):
        for batch, frames in decode_shots([batch for part in parts if (batch := shots(part))], data, missing):
            clips = torch.from_numpy(frames).to(device)
            places, captions = wanted[:, [shot.video for shot in batch]].T.nonzero(as_tuple=True)
            probabilities = []
            for first in range(0, len(captions), BATCH):
                chosen = captions[first : first + BATCH].tolist()
                texts = [videos.manifest[int(rows[caption])].caption for caption in chosen]
                words, word_mask = (each.to(device) for each in read_captions(texts, tokenizer, data.max_words))
                pictures = clips[places[first : first + BATCH].to(device)]
                logits = computed(model.match_pairs, pictures, words, word_mask)
                probabilities.append(logits.softmax(dim=-1)[:, 1])
                done += len(chosen)
                on_progress(done, total)
            failed = torch.tensor([shot.video in missing for shot in batch])
            found[batch[0].video // BATCH] = torch.cat(probabilities).masked_fill(failed[places], 0.0).numpy()
    found, missing = share.gather_dict(found), share.gather_dict(missing)
    matches = torch.zeros_like(similarity)
    if found:
        pairs = torch.from_numpy(np.concatenate([found[number] for number in sorted(found)])).double()
        owners, captions = wanted.T.nonzero(as_tuple=True)
        matches[captions, owners] = pairs
    return (
        torch.where(for_text, 2 + matches, similarity),
        torch.where(for_video, 2 + matches, similarity),
        [missing[video] for video in sorted(missing)],
    )
