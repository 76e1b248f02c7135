"""Masked language modelling: name the hidden words.

Dimensions: K hidden words of the micro batch, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def word_loss(logits: Tensor, ids: Tensor, each: Tensor | None = None) -> Tensor:
    """Cross entropy of logits [K, V] against int64 [K]: float32 []; its mean over ranks is the mean over all words.

    K differs from rank to rank and may be 0: that rank's loss is 0 and still reaches every parameter behind `logits`,
    which ZeRO needs.

    Args:
        logits: Of the hidden words.
        ids: The words that were hidden.
        each: float32 [], from `words_of_each`, for the mean over all micro batches of a step. None: over this one; all
            ranks must call it.
    """
    total = F.cross_entropy(logits.float(), ids, reduction="sum")
    return total / (words_of_each(logits.shape[0], 1, logits.device) if each is None else each)


def words_of_each(hidden: int, micro_batches: int, device: torch.device) -> Tensor:
    """How many words a micro batch of a rank hides on average over a step: float32 [].

    All ranks must call it (one all-reduce of a scalar); nothing waits for the device.

    Args:
        hidden: Words that this rank's micro batches of the step hide.
        micro_batches: Of this rank.
        device: Of the result.
    """
    # Filled on the device: a tensor made of a Python number would be copied there.
    count = torch.full((), hidden, dtype=torch.float32, device=device)
    world = 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        world = dist.get_world_size()
    return count.clamp(min=1) / (world * micro_batches)
