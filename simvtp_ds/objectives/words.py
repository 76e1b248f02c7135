"""Masked language modelling: name the hidden words.

Dimensions: K hidden words of the micro batch, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def word_loss(
    word_logits: Callable[[Tensor], Tensor],
    outputs: Tensor,
    ids: Tensor,
    chunks: int = 1,
    each: Tensor | None = None,
    fused: nn.Linear | None = None,
) -> Tensor:
    """Cross entropy of the hidden words: float32 []; its mean over ranks is the mean over all words.

    Logits are made chunk by chunk, and once more in the backward pass, so that [K, V] is never in memory.

    K differs from rank to rank and may be 0: that rank's loss is 0 and still reaches every parameter behind it, which
    ZeRO needs.

    Args:
        word_logits: [..., D] to [..., V].
        outputs: [K, D], the encoder's at the hidden words.
        ids: int64 [K], the words that stood there.
        chunks: Parts that K is cut into, as many on every rank: under ZeRO-3 a call of `word_logits` is a collective.
        each: float32 [], from `words_of_each`, for the mean over all micro batches of a step. None: over this one; all
            ranks must call it.
        fused: The layer behind `word_logits`, where Liger's fused kernel is to do it (on a GPU). It reads the weights
            past the module, so ZeRO-3 is out.
    """
    if fused is not None and len(ids):
        total = _fused_surprise(fused, outputs, ids)
    else:
        parts = zip(outputs.tensor_split(chunks), ids.tensor_split(chunks), strict=True)
        total = torch.stack([_surprise(word_logits, *part) for part in parts]).sum()
    return total / (words_of_each(ids.shape[0], 1, ids.device) if each is None else each)


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


def _surprise(word_logits: Callable[[Tensor], Tensor], outputs: Tensor, ids: Tensor) -> Tensor:
    """Sum of the cross entropies; the logits are not kept."""

    def run(outputs: Tensor) -> Tensor:
        return F.cross_entropy(word_logits(outputs).float(), ids, reduction="sum")

    # There is no dropout in it, so no state of a generator has to be kept.
    return checkpoint(run, outputs, use_reentrant=False, preserve_rng_state=False)


def _fused_surprise(head: nn.Linear, outputs: Tensor, ids: Tensor) -> Tensor:
    """The same by Liger, which makes the gradients in the forward pass, so that logits are made once."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    total: Any = liger_fused_linear_cross_entropy(outputs, head.weight, ids, bias=head.bias, reduction="sum")
    return total.float()
