"""Masked language modelling: name the hidden words.

Dimensions: K hidden words of the micro batch, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def word_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross entropy of logits [K, V] against int64 [K]: float32 []; its mean over ranks is the mean over all words.

    K differs from rank to rank and may be 0: that rank's loss is 0 and still reaches every parameter behind `logits`,
    which ZeRO needs. All ranks must call it (one all-reduce of a scalar); nothing waits for the device.
    """
    total = F.cross_entropy(logits.float(), ids, reduction="sum")
    # Filled on the device: a tensor made of a Python number would be copied there.
    count = torch.full((), logits.shape[0], dtype=torch.float32, device=logits.device)
    if not (dist.is_available() and dist.is_initialized()):
        return total / count.clamp(min=1)
    dist.all_reduce(count)
    return total * dist.get_world_size() / count.clamp(min=1)
