"""Unit vectors of every caption and every video of a set, computed by all ranks together.

Dimensions: Q captions, V videos, D width, B rows of a batch. The embeddings are those that the contrast trains, from
the whole clip and the whole caption: nothing is hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simvtp_ds.data.captions import whole_captions
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.data.videos import Videos
from simvtp_ds.data_config import DataConfig
from simvtp_ds.evaluation.compute import ahead, computed, evaluating
from simvtp_ds.evaluation.frames import Missing, Shot, decode_shots
from simvtp_ds.evaluation.share import Share
from simvtp_ds.evaluation.views import plan_views
from simvtp_ds.progress import OnProgress


@dataclass(frozen=True)
class Embeddings:
    """A set as a model sees it, float32 on the CPU. Captions are ordered by video, then by row of the manifest."""

    texts: Tensor  # [Q, D], of unit length
    middle: Tensor  # [V, D], of unit length: the middle view; zeros where the video is missing
    average: Tensor | None  # [V, D], of unit length: all views; None where there is only the middle one
    video_of_caption: Tensor  # int64 [Q]
    found: Tensor  # bool [V], False where the video is missing
    missing: list[Missing]


def caption_rows(videos: Videos) -> tuple[np.ndarray, np.ndarray]:
    """Manifest row and video of every caption, each int64 [Q], in the order of `Embeddings.texts`."""
    rows = [videos.rows(video) for video in range(len(videos))]
    return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(own) for own in rows])


def read_captions(captions: Sequence[str], tokenizer: Tokenizer, max_words: int) -> tuple[Tensor, Tensor]:
    """Token ids int64 [B, L] with no word hidden, and bool [B, L], False on padding."""
    words, word_mask = whole_captions(captions, tokenizer, max_words)
    return torch.from_numpy(words), torch.from_numpy(word_mask)


def embed(
    model: Any,
    tokenizer: Tokenizer,
    data: DataConfig,
    videos: Videos,
    segments: int,
    crops: int,
    share: Share,
    on_progress: OnProgress = lambda done, total: None,
) -> Embeddings:
    """Embed a set; every rank calls it and gets all of it.

    The unit vectors of a video's views are averaged, and the average is brought to unit length again. The model is in
    evaluation mode meanwhile; videos that cannot be decoded are in `missing`. With the same number of threads the
    result is the same bit for bit for any number of ranks.

    Args:
        model: Has embed_video(frames) and embed_text(words, word_mask), float32 [B, D] of unit length.
        tokenizer: The model's.
        data: Frames, pixels and words of a clip; decoder processes and their time limit.
        videos: The set.
        segments, crops: See `plan_views`.
        share: This rank's part.
        on_progress: Told of this rank's views and captions.

    Raises:
        RuntimeError: decoder processes do not start.
    """
    rows, video_of_caption = caption_rows(videos)
    device = next(model.parameters()).device
    shots, counts = plan_shots(videos, share.batches(len(videos)), data, segments, crops)
    text_batches = share.batches(len(rows))
    total, done = sum(map(len, shots)) + sum(map(len, text_batches)), 0
    texts: dict[int, np.ndarray] = {}
    first: dict[int, np.ndarray] = {}
    sums: dict[int, np.ndarray] = {}
    missing: dict[int, Missing] = {}

    with evaluating(model):
        for part in text_batches:
            captions = [videos.manifest[int(row)].caption for row in rows[part.start : part.stop]]
            words, word_mask = read_captions(captions, tokenizer, data.max_words)
            texts[part.start] = computed(model.embed_text, words.to(device), word_mask.to(device)).numpy()
            done += len(part)
            on_progress(done, total)
        for batch, vectors in ahead(decode_shots(shots, data, missing), model.embed_video, device):
            for shot, vector in zip(batch, vectors.numpy(), strict=True):
                first.setdefault(shot.video, vector)
                sums[shot.video] = sums.get(shot.video, 0) + np.float32(counts[shot.video].pop(0)) * vector
            done += len(batch)
            on_progress(done, total)
    texts, first, sums, missing = (share.gather_dict(mine) for mine in (texts, first, sums, missing))
    found = torch.tensor([video not in missing for video in range(len(videos))])
    several = segments * crops > 1
    return Embeddings(
        texts=torch.from_numpy(np.concatenate([texts[start] for start in sorted(texts)])),
        middle=_stacked(first, found),
        average=F.normalize(_stacked(sums, found), dim=-1) if several else None,
        video_of_caption=torch.from_numpy(video_of_caption),
        found=found,
        missing=[missing[video] for video in sorted(missing)],
    )


def plan_shots(
    videos: Videos, parts: Iterable[Sequence[int]], data: DataConfig, segments: int, crops: int
) -> tuple[list[list[Shot]], dict[int, list[int]]]:
    """Batches of shots, and how often each view of a video counts.

    A batch is the k-th view of the videos of a part, at most 32: a video that fails is known before its next view is
    due.
    """
    batches: list[list[Shot]] = []
    counts: dict[int, list[int]] = {}
    for part in parts:
        planned = {video: plan_views(videos.clip(video), data, segments, crops) for video in part}
        counts |= {video: [view.count for view in views] for video, views in planned.items()}
        for k in range(max(map(len, planned.values()))):
            batches.append([Shot(v, videos.clip(v), views[k].view) for v, views in planned.items() if k < len(views)])
    return batches, counts


def _stacked(vectors: dict[int, np.ndarray], found: Tensor) -> Tensor:
    """float32 [V, D], zeros where nothing was found."""
    stacked = torch.from_numpy(np.stack([vectors[video] for video in range(len(found))]))
    return stacked.where(found[:, None], 0.0)
