"""The contrast of all micro batches of a step, in the memory of one (GradCache, arXiv 2101.06983).

Dimensions: A micro batches of a step on this rank, W ranks, B clips of a micro batch, D width. The contrast is over all
A * W * B clips:

    1. features of each micro batch, without a graph              task.features(batch)
    2. the contrast of all of them, and its gradient by feature   task.of_step(features, micro_batches)
    3. each micro batch again, with a graph, that gradient handed on   engine(batch, cached), engine.backward

A micro batch must drop the same in 1 and 3: reseed dropout for it before both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Features(NamedTuple):
    """One micro batch after its video pass and its text pass."""

    video: Tensor  # float32 [B, D], any length
    text: Tensor  # float32 [B, D], any length


class CachedContrast(NamedTuple):
    """What the contrast of a whole step wants of one micro batch."""

    video: Tensor  # float32 [B, D], A times its gradient by the video features: DeepSpeed divides by A
    text: Tensor  # float32 [B, D], the same by the text features
    value: Tensor  # float32 [], the contrast of the whole step, the same for each micro batch


def contrast_gradients(
    contrast: Callable[[Features, Tensor], Tensor], features: Sequence[Features], video_ids: Sequence[Tensor]
) -> list[CachedContrast]:
    """The contrast over all micro batches of a step and its gradients, one entry for each of them.

    All ranks call it together. As in one micro batch, the mean over ranks (of the value, and of the gradients that
    `handed_on` passes back) is that of one process with all clips. A contrast does not depend on the order of its
    clips, so it takes them rank by rank though the step's order is micro batch by micro batch.

    Args:
        contrast: Of features and video ids of this rank's clips: float32 [].
        features: Of each micro batch.
        video_ids: int64 [B] of each micro batch, on any device.
    """
    leaves = Features(*(torch.cat(parts).requires_grad_() for parts in zip(*features, strict=True)))
    with torch.enable_grad():
        value = contrast(leaves, torch.cat(list(video_ids)).to(leaves.video.device))
    gradients = torch.autograd.grad(value, leaves)
    sizes = [len(part.video) for part in features]
    parts = (len(features) * gradient for gradient in gradients)
    return [
        CachedContrast(video, text, value.detach())
        for video, text in zip(*(part.split(sizes) for part in parts), strict=True)
    ]


def handed_on(features: Features, cached: CachedContrast) -> Tensor:
    """The value of the whole step's contrast, with the cached gradients by this micro batch's features."""
    surrogate = (features.video * cached.video).sum() + (features.text * cached.text).sum()
    return cached.value + (surrogate - surrogate.detach())
