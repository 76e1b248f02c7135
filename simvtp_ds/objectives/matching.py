"""Video-text matching: does this caption belong to this video?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def match_loss(logits: Tensor, negative_logits: Tensor) -> Tensor:
    """Cross entropy of B true pairs (class 1) and B false pairs (class 0), both [B, 2], mean over 2B: float32 []."""
    return F.cross_entropy(torch.cat([logits, negative_logits]).float(), _labels(logits, negative_logits))


def counted_match_loss(logits: Tensor, negative_logits: Tensor, counted: Tensor) -> Tensor:
    """The same, mean over the true pairs and those false pairs that are `counted` (bool [B])."""
    surprises = F.cross_entropy(
        torch.cat([logits, negative_logits]).float(), _labels(logits, negative_logits), reduction="none"
    )
    weight = torch.cat([torch.ones_like(counted), counted]).float()
    return (surprises * weight).sum() / weight.sum()


def hardest_videos(video: Tensor, text: Tensor, video_ids: Tensor) -> tuple[Tensor, Tensor]:
    """For each caption the most similar other video of the batch (ALBEF's hard negative, arXiv 2107.07651).

    ALBEF draws it with a probability that grows with the similarity; the most similar one needs no random number.

    Args:
        video: Features [B, D], any length.
        text: Features [B, D] of their captions.
        video_ids: int64 [B]; equal numbers are the same video.

    Returns:
        int64 [B], the index of that video, and bool [B], False where the batch holds no other video (the index then
        means nothing). Without gradient, and nothing waits for the device.
    """
    with torch.no_grad():
        similarity = F.normalize(text.float(), dim=-1) @ F.normalize(video.float(), dim=-1).T
        same = video_ids[:, None] == video_ids
        return similarity.masked_fill(same, -torch.inf).argmax(dim=1), ~same.all(dim=1)


def _labels(logits: Tensor, negative_logits: Tensor) -> Tensor:
    yes = torch.ones(logits.shape[0], dtype=torch.long, device=logits.device)
    no = torch.zeros(negative_logits.shape[0], dtype=torch.long, device=negative_logits.device)
    return torch.cat([yes, no])
