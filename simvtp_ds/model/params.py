"""Parameter groups for the optimizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

_BLOCK = re.compile(r"\bblocks\.layers\.(\d+)\.")
_EMBEDDINGS = re.compile(r"\b(video\.patches|text\.words)\.")
_HEADS = re.compile(r"\b(fc_norm|match_norm|match_head)\.")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weights with `weight_decay`; biases, norms and everything 1-D without."""
    return _by_decay(_trainable(model), weight_decay)


def layered_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """The same, layer by layer, each group with its factor of the learning rate as "lr_scale".

    The factor is layer_decay^(depth + 1 - layer): the embeddings of patches and words are layer 0, block i is layer
    i + 1, and what comes after the blocks is layer depth + 1 with factor 1 (BEiT, arXiv 2106.08254; VideoMAE). A block
    has the same factor in both towers.

    Args:
        model: A `TwoTower`, or a task that holds one.
        weight_decay: Decay of the weights.
        layer_decay: Factor from each layer to the one before it.

    Raises:
        ValueError: a parameter belongs to no layer.
    """
    layers: dict[int, list[tuple[str, nn.Parameter]]] = {}
    named = _trainable(model)
    depth = 1 + max((int(found[1]) for name, _ in named if (found := _BLOCK.search(name))), default=-1)
    for name, parameter in named:
        layers.setdefault(_layer(name, depth), []).append((name, parameter))
    return [
        {
            **group,
            "name": f"{_layer_name(layer, depth)} {group['name']}",
            "lr_scale": layer_decay ** (depth + 1 - layer),
        }
        for layer, members in sorted(layers.items())
        for group in _by_decay(members, weight_decay)
    ]


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _by_decay(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    decay, no_decay = [], []
    for name, parameter in named:
        # A parameter that ZeRO-3 has split among ranks is flat; its real shape is in `ds_shape`.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (no_decay if len(shape) <= 1 or name.endswith("bias") else decay).append(parameter)
    groups = [
        {"name": "decay", "params": decay, "weight_decay": weight_decay},
        {"name": "no_decay", "params": no_decay, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _layer(name: str, depth: int) -> int:
    if block := _BLOCK.search(name):
        return int(block[1]) + 1
    if _EMBEDDINGS.search(name):
        return 0
    if _HEADS.search(name):
        return depth + 1
    raise ValueError(f"{name!r} belongs to no layer of two towers: expected embeddings, a block, or what follows them")


def _layer_name(layer: int, depth: int) -> str:
    return {0: "embeddings", depth + 1: "heads"}.get(layer, f"block {layer - 1}")
