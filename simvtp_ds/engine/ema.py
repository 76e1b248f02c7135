"""The moving average of the weights, split among ranks as ZeRO splits the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from simvtp_ds.engine.saving import fp32_weights


def own_fragments(module: nn.Module) -> list[Tensor]:
    """This rank's part of the fp32 master weights, as views: ZeRO-1 and 2 keep a part a rank, without ZeRO all of it.

    A parameter none of which is this rank's has none. ZeRO-3 has no such views.
    """
    fragments = []
    for parameter in module.parameters():
        if hasattr(parameter, "_hp_mapping"):
            mapping = getattr(parameter, "_hp_mapping")  # noqa: B009, the attribute is DeepSpeed's
            fragments += [] if mapping is None else [mapping.get_hp_fragment().data]
        else:
            fragments.append(parameter.data)
    return fragments


class Ema:
    """average = decay * average + (1 - decay) * weights, in fp32; starts at the weights that the engine has now.

    Args:
        engine: The DeepSpeed engine, ZeRO 0 to 2.
        decay: Of the average a step. The first steps use (1 + step) / (10 + step) where that is less, so that the
            initial weights are forgotten.
    """

    def __init__(self, engine: Any, decay: float) -> None:
        self.engine = engine
        self.decay = decay
        self.weights = own_fragments(engine.module)
        self.averages = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after global step `step`, counted from 0; nothing waits for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, weight in zip(self.averages, self.weights, strict=True):
            average.lerp_(weight, 1 - decay)

    @torch.no_grad()
    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Averages and master weights change places for the length of the block; the module's own copy stays."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for weight, average in zip(self.weights, self.averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def full(self) -> dict[str, Tensor]:
        """The whole average in fp32 on the CPU, named like the weights; all ranks must call it."""
        with self.in_place_of_weights():
            return fp32_weights(self.engine)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up the average that `full` gave."""
        from deepspeed.utils import safe_set_full_fp32_param

        with self.in_place_of_weights():
            for name, parameter in self.engine.module.named_parameters():
                value = state[name.removeprefix("model.")].to(parameter.device)
                if hasattr(parameter, "_hp_mapping"):
                    safe_set_full_fp32_param(parameter, value)
                else:
                    parameter.data.copy_(value)

    @torch.no_grad()
    @contextmanager
    def in_module(self) -> Iterator[None]:
        """The module computes with the average for the length of the block (evaluation); all ranks must call it."""
        average = self.full()
        named = dict(self.engine.module.named_parameters())
        kept = {name: parameter.data.clone() for name, parameter in named.items()}
        try:
            for name, parameter in named.items():
                parameter.data.copy_(average[name.removeprefix("model.")])
            yield
        finally:
            for name, parameter in named.items():
                parameter.data.copy_(kept[name])
