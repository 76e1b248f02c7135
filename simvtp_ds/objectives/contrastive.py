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
        return _all_rows(rows)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        grad = grad_outputs[0].clone(memory_format=torch.contiguous_format)  # all_reduce writes in place
        dist.all_reduce(grad)
        first = dist.get_rank() * ctx.count
        return grad[first : first + ctx.count]


def _all_rows(rows: Tensor) -> Tensor:
    """[B, ...] of each rank to [W * B, ...] on each rank, without gradient."""
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(rows: Tensor) -> Tensor:
    """[B, D] of each rank to [W * B, D] on each rank, with gradient; unchanged where there is one rank."""
    if not _several_ranks():
        return rows
    gathered = _AllGather.apply(rows)
    assert isinstance(gathered, Tensor)  # `apply` is untyped
    return gathered


def local_contrast(video: Tensor, text: Tensor, temperature: float, video_ids: Tensor | None = None) -> Tensor:
    """Contrast of features [B, D] and [B, D] (any length) against the other clips of this rank only: float32 [].

    Cross entropy video to text plus text to video: a sum, not an average (SimVTP). Where `video_ids` int64 [B] has a
    number twice, the two clips are one video: neither is a negative of the other.
    """
    video, text = F.normalize(video.float(), dim=-1), F.normalize(text.float(), dim=-1)
    own = torch.arange(video.shape[0], device=video.device)
    same = None if video_ids is None else _repeated(video_ids, video_ids, own)
    return _both_ways(video, text, video, text, own, same, temperature)


def global_contrast(video: Tensor, text: Tensor, temperature: float, video_ids: Tensor | None = None) -> Tensor:
    """The same against the clips of all ranks: float32 [].

    Each rank scores its own B rows against all W * B columns, so the mean over ranks (of the value, and of the
    gradient, as data parallelism averages it) is that of one process with the joined batch.
    """
    if not _several_ranks():
        return local_contrast(video, text, temperature, video_ids)
    video, text = F.normalize(video.float(), dim=-1), F.normalize(text.float(), dim=-1)
    first = dist.get_rank() * video.shape[0]
    own = torch.arange(first, first + video.shape[0], device=video.device)
    same = None if video_ids is None else _repeated(video_ids, _all_rows(video_ids), own)
    return _both_ways(video, text, gather_rows(video), gather_rows(text), own, same, temperature)


def _repeated(video_ids: Tensor, all_ids: Tensor, own: Tensor) -> Tensor:
    """bool [B, W * B]: True where a column is the row's video again, but not the row's own column `own` int64 [B]."""
    columns = torch.arange(all_ids.shape[0], device=all_ids.device)
    return (video_ids[:, None] == all_ids) & (own[:, None] != columns)


def _both_ways(
    video: Tensor,
    text: Tensor,
    all_video: Tensor,
    all_text: Tensor,
    own: Tensor,
    same: Tensor | None,
    temperature: float,
) -> Tensor:
    """Row i of `video` belongs to row `own[i]` of `all_text`, and the other way round; columns `same` are left out."""
    video_to_text, text_to_video = video @ all_text.T / temperature, text @ all_video.T / temperature
    if same is not None:
        video_to_text = video_to_text.masked_fill(same, -torch.inf)
        text_to_video = text_to_video.masked_fill(same, -torch.inf)
    return F.cross_entropy(video_to_text, own) + F.cross_entropy(text_to_video, own)
