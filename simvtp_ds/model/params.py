"""Parameter groups for the optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weights with `weight_decay`; biases, norms and everything 1-D without."""
    decay, no_decay = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # A parameter that ZeRO-3 has split among ranks is flat; its real shape is in `ds_shape`.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (no_decay if len(shape) <= 1 or name.endswith("bias") else decay).append(parameter)
    groups = [
        {"name": "decay", "params": decay, "weight_decay": weight_decay},
        {"name": "no_decay", "params": no_decay, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
