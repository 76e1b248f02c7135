"""The model at work on batches: no dropout, no graph, results on the CPU, the next batch decoded meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simvtp_ds.evaluation.frames import Shot


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model without dropout for the length of the block, then as before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.inference_mode()
def computed(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """What a method of the model gives, float32 on the CPU."""
    return function(*arguments).float().cpu()


def ahead(
    decoded: Iterator[tuple[list[Shot], np.ndarray]], function: Callable[[Tensor], Tensor], device: torch.device
) -> Iterator[tuple[list[Shot], Tensor]]:
    """Each batch with what `function` makes of its frames; the next batch is decoded while the model works.

    The model works in a thread of its own: decoder processes must stay with the thread that started them.
    """

    def work(frames: np.ndarray) -> Tensor:
        return computed(function, torch.from_numpy(frames).to(device))

    pending: tuple[list[Shot], Future[Tensor]] | None = None
    with ThreadPoolExecutor(max_workers=1) as thread:
        for batch, frames in decoded:
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = batch, thread.submit(work, frames)
        if pending is not None:
            yield pending[0], pending[1].result()
