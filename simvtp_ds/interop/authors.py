"""Names and shapes of the authors' weights, into ours and back.

They keep a Conv3d for the patches and a mask token of shape [1, 1, D]; ours are a matrix and a vector, same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from einops import rearrange
from torch import Tensor

from simvtp_ds.config import ModelConfig

# (theirs, ours), each a prefix of names; everything after it is the same but for the attention biases.
PRETRAIN_NAMES = (
    ("encoder.patch_embed.proj.", "patches."),
    ("encoder.blocks.", "encoder.blocks.layers."),
    ("encoder.norm.", "encoder.norm."),
    ("text_embeddings.", "words.embeddings."),
    ("encoder_to_decoder.", "decoder.project."),
    ("mask_token", "decoder.mask_token"),
    ("decoder.blocks.", "decoder.blocks.layers."),
    ("decoder.norm.", "decoder.norm."),
    ("decoder.head.", "decoder.head."),
    ("text_cls.", "word_head."),
    ("vtm_head.", "match_head."),
)
FINETUNE_NAMES = (
    ("video_encoder.patch_embed.proj.", "video.patches."),
    ("video_encoder.blocks.", "video.blocks.layers."),
    ("video_encoder.fc_norm.", "video.fc_norm."),
    ("text_encoder.text_embeddings.", "text.words.embeddings."),
    ("text_encoder.blocks.", "text.blocks.layers."),
    ("text_encoder.fc_norm.", "text.fc_norm."),
)
# Each of their towers is a whole encoder and carries the other's embeddings, unused.
FINETUNE_UNUSED = ("video_encoder.text_embeddings.", "text_encoder.patch_embed.")

Names = tuple[tuple[str, str], ...]


def model_config(sizes: Mapping[str, Any]) -> ModelConfig:
    """The sizes of a model as the authors name them (a fine-tuning model has no decoder)."""
    default = ModelConfig()
    return ModelConfig(
        width=sizes["embed_dim"],
        depth=sizes["depth"],
        heads=sizes["num_heads"],
        decoder_width=sizes.get("decoder_embed_dim", default.decoder_width),
        decoder_depth=sizes.get("decoder_depth", default.decoder_depth),
        decoder_heads=sizes.get("decoder_num_heads", default.decoder_heads),
        mlp_ratio=sizes["mlp_ratio"],
        patch_size=sizes["patch_size"],
        tubelet_size=sizes["tubelet_size"],
        text_positions=sizes["max_text_positions"],
        text_dropout=0.0,
    )


def renamed(name: str, names: Names) -> str | None:
    """Our name of the parameter `name` of a model that calls its blocks as VideoMAE does; None where it has none."""
    ours = _renamed(name, names)
    return None if ours is None else re.sub(r"\.attn\.([qv]_bias)$", r".attn.qkv.\1", ours)


def to_ours(name: str, names: Names = PRETRAIN_NAMES) -> str:
    """Our name of the authors' parameter `name`; ValueError where it has none."""
    ours = renamed(name, names)
    if ours is None:
        raise ValueError(
            f"{name!r} is not a parameter of the authors' model: expected one that starts with {[n for n, _ in names]}"
        )
    return ours


def to_theirs(name: str, names: Names = PRETRAIN_NAMES) -> str:
    """The authors' name of our parameter `name`; ValueError where it has none."""
    theirs = _renamed(name, tuple((ours, theirs) for theirs, ours in names))
    if theirs is None:
        raise ValueError(
            f"{name!r} is not a parameter of our model: expected one that starts with {[n for _, n in names]}"
        )
    return re.sub(r"\.attn\.qkv\.([qv]_bias)$", r".attn.\1", theirs)


def state_to_authors(
    state: Mapping[str, Tensor], config: ModelConfig, names: Names = PRETRAIN_NAMES
) -> dict[str, Tensor]:
    """Their state dict from ours; `config` gives the shape of a patch."""
    result = {}
    for ours, value in state.items():
        theirs = to_theirs(ours, names)
        if theirs.endswith("patch_embed.proj.weight"):
            size = {"pt": config.tubelet_size, "ph": config.patch_size, "pw": config.patch_size}
            value = rearrange(value, "d (c pt ph pw) -> d c pt ph pw", **size)
        elif ours == "decoder.mask_token":
            value = rearrange(value, "d -> 1 1 d")
        result[theirs] = value
    return result


def to_our_shape(ours: str, value: Tensor) -> Tensor:
    """Their parameter (or its gradient) in the shape that ours of this name has, where it can have it."""
    if ours.endswith("patches.weight") and value.dim() == 5:
        return rearrange(value, "d c pt ph pw -> d (c pt ph pw)")
    if ours == "decoder.mask_token" and value.dim() == 3 and value.shape[:2] == (1, 1):
        return rearrange(value, "1 1 d -> d")
    return value


def _renamed(name: str, prefixes: Names) -> str | None:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name[len(old) :]
    return None
