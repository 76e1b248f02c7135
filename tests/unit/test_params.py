"""Layer decay against timm's."""

from __future__ import annotations

from typing import Any

import pytest
from timm.models.vision_transformer import VisionTransformer
from timm.optim._param_groups import param_groups_layer_decay
from tiny import tiny_model
from tiny_towers import tiny_towers
from torch import nn

from simvtp_ds.config import ModelConfig
from simvtp_ds.model.params import layered_groups

DEEP = ModelConfig(width=24, depth=4, heads=3, patch_size=4, text_positions=20)


def by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """(lr_scale, weight decay) of each parameter; a parameter that is in two groups fails."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["lr_scale"], group["weight_decay"])
    return found


def timms_name(name: str) -> str:
    """The parameter of timm's ViT that stands where ours does."""
    tower_less = name.split(".", 1)[1] if name.startswith(("video.", "text.")) else name
    kind = "weight" if name.endswith("weight") else "bias"
    if tower_less.startswith(("patches.", "words.")):
        # A LayerNorm has a 1-D weight, for which timm's embedding has no counterpart but its bias.
        return "patch_embed.proj.bias" if kind == "bias" or "LayerNorm" in name else "patch_embed.proj.weight"
    if tower_less.startswith("blocks."):
        return tower_less.replace("layers.", "").replace("q_bias", "bias").replace("v_bias", "bias")
    return f"head.{kind}" if name.startswith("match_head.") else f"fc_norm.{kind}"


@pytest.mark.parametrize("shared", [False, True])
def test_layers_are_those_of_timms_layer_decay(shared: bool) -> None:
    model = tiny_towers(DEEP, shared=shared, match=True)
    vit = VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=4, num_heads=3, num_classes=2, fc_norm=True)
    timms = by_name(vit, param_groups_layer_decay(vit, weight_decay=0.05, layer_decay=0.75))
    ours = by_name(model, layered_groups(model, weight_decay=0.05, layer_decay=0.75))
    assert ours.keys() == dict(model.named_parameters()).keys()
    for name, values in ours.items():
        assert values == pytest.approx(timms[timms_name(name)]), name
    assert sorted({scale for scale, _ in ours.values()}) == pytest.approx([0.75**power for power in range(5, -1, -1)])


def test_groups_say_what_is_in_them() -> None:
    groups = layered_groups(nn.ModuleDict({"model": tiny_towers()}), weight_decay=0.05, layer_decay=0.5)
    assert [(group["name"], group["lr_scale"], group["weight_decay"]) for group in groups] == [
        ("embeddings decay", 0.125, 0.05),
        ("embeddings no_decay", 0.125, 0.0),
        ("block 0 decay", 0.25, 0.05),
        ("block 0 no_decay", 0.25, 0.0),
        ("block 1 decay", 0.5, 0.05),
        ("block 1 no_decay", 0.5, 0.0),
        ("heads no_decay", 1.0, 0.0),
    ]


def test_a_parameter_of_no_layer_is_named() -> None:
    with pytest.raises(ValueError, match=r"'patches\.weight' belongs to no layer of two towers"):
        layered_groups(tiny_model(), weight_decay=0.05, layer_decay=0.75)
