"""How many floating-point operations a step takes, and how many a second this device can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from simvtp_ds.bench.inputs import build_task, noise_batch
from simvtp_ds.bench.timing import clock
from simvtp_ds.config import PretrainConfig
from simvtp_ds.objectives.pretrain import PretrainTask
from simvtp_ds.types import Batch

SIDES = (1024, 2048)  # of the square matrices whose product is timed; the best counts
GPU_SIDES = (4096, 8192)


def count_flops(run: Callable[[], object]) -> int:
    """Operations of the products and the attention of `run`, forward and backward; an addition and a multiplication
    are two. `run` computes on "meta" tensors, where attention is plain products, so that none of it is missing."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def training_flops(task: nn.Module, batch: Batch) -> int:
    """Model FLOPs of forward and backward on "meta" tensors: what is computed twice counts once."""
    total = count_flops(lambda: task(batch).total.backward())
    if isinstance(task, PretrainTask):
        head = task.model.word_head  # its logits are made again in the backward pass
        total -= 2 * len(batch.hidden_words) * head.in_features * head.out_features
    return total


def step_flops(config: PretrainConfig, clips: int, words: int) -> tuple[int, int]:
    """Model FLOPs of our forward pass, and of forward and backward, for one micro batch; takes no memory.

    Args:
        config: Sizes and masks.
        clips: Micro batch (B).
        words: Tokens of the longest caption (L).
    """
    task = build_task(config, "meta")
    batch = on_meta(noise_batch(config, clips, words))
    return count_flops(lambda: task(batch)), training_flops(task, batch)


def on_meta(batch: Batch) -> Batch:
    """Its shapes and dtypes."""
    return Batch(*(tensor.to("meta") for tensor in batch))


def matmul_peak(dtype: torch.dtype, device: torch.device, runs: int = 5) -> float:
    """Operations a second of the fastest square product found: the most that a step can hope for, measured."""
    sides = GPU_SIDES if device.type == "cuda" else SIDES
    return max(rate for side in sides for rate in _rates(side, dtype, device, runs))


def _rates(side: int, dtype: torch.dtype, device: torch.device, runs: int) -> Iterator[float]:
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(one)
    for run in range(runs + 1):
        started = clock(device)
        torch.mm(one, other, out=product)
        if run:  # the first warms up
            yield 2 * side**3 / (clock(device) - started)
