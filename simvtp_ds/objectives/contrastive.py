"""Video-text contrast over the clips of this rank or of all ranks.

Dimensions: B clips of this rank (the same on every rank), W ranks, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class _AllGather(torch.autograd.Function):
    """Rows of all ranks, in rank order. Backward: the sum over ranks of what each wants of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = rows.shape[0]
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        grad = grad_outputs[0].clone(memory_format=torch.contiguous_format)  # all_reduce writes in place
        dist.all_reduce(grad)
        first = dist.get_rank() * ctx.count
        return grad[first : first + ctx.count]


def gather_rows(rows: Tensor) -> Tensor:
    """[B, D] of each rank to [W * B, D] on each rank, with gradient; unchanged where there is one rank."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    gathered = _AllGather.apply(rows)
    assert isinstance(gathered, Tensor)  # `apply` is untyped
    return gathered


def local_contrast(video: Tensor, text: Tensor, temperature: float) -> Tensor:
    """Contrast of features [B, D] and [B, D] (any length) against the other clips of this rank only: float32 [].

    Cross entropy video to text plus text to video: a sum, not an average (SimVTP).
    """
    video, text = F.normalize(video.float(), dim=-1), F.normalize(text.float(), dim=-1)
    return _both_ways(video, text, video, text, first=0, temperature=temperature)


def global_contrast(video: Tensor, text: Tensor, temperature: float) -> Tensor:
    """The same against the clips of all ranks: float32 [].

    Each rank scores its own B rows against all W * B columns, so the mean over ranks (of the value, and of the
    gradient, as data parallelism averages it) is that of one process with the joined batch.
    """
    video, text = F.normalize(video.float(), dim=-1), F.normalize(text.float(), dim=-1)
    all_video, all_text = gather_rows(video), gather_rows(text)
    first = 0 if all_video is video else dist.get_rank() * video.shape[0]
    return _both_ways(video, text, all_video, all_text, first, temperature)


def _both_ways(
    video: Tensor, text: Tensor, all_video: Tensor, all_text: Tensor, first: int, temperature: float
) -> Tensor:
    """Row i of `video` belongs to row `first + i` of `all_text`, and the other way round."""
    own = torch.arange(first, first + video.shape[0], device=video.device)
    video_to_text = F.cross_entropy(video @ all_text.T / temperature, own)
    text_to_video = F.cross_entropy(text @ all_video.T / temperature, own)
    return video_to_text + text_to_video
