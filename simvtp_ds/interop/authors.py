"""Names and shapes of the authors' weights, into ours and back.

They keep a Conv3d for the patches and a mask token of shape [1, 1, D]; ours are a matrix and a vector, same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

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


def to_ours(name: str, names: Names = PRETRAIN_NAMES) -> str:
    """Our name of the authors' parameter `name`; ValueError where it has none."""
    ours = _rename(name, names)
    if ours is None:
        raise ValueError(
            f"{name!r} is not a parameter of the authors' model: expected one that starts with {[n for n, _ in names]}"
        )
    return re.sub(r"\.attn\.([qv]_bias)$", r".attn.qkv.\1", ours)


def to_theirs(name: str, names: Names = PRETRAIN_NAMES) -> str:
    """The authors' name of our parameter `name`; ValueError where it has none."""
    theirs = _rename(name, tuple((ours, theirs) for theirs, ours in names))
    if theirs is None:
        raise ValueError(
            f"{name!r} is not a parameter of our model: expected one that starts with {[n for _, n in names]}"
        )
    return re.sub(r"\.attn\.qkv\.([qv]_bias)$", r".attn.\1", theirs)


def state_from_authors(
    weights: Mapping[str, Tensor], names: Names = PRETRAIN_NAMES, unused: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Our state dict from theirs, for a strict `load_state_dict`, without names that start with one of `unused`."""
    skip = tuple(unused)
    return {
        to_ours(name, names): tensor_from_authors(name, value)
        for name, value in weights.items()
        if not name.startswith(skip)
    }


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
        elif theirs == "mask_token":
            value = rearrange(value, "d -> 1 1 d")
        result[theirs] = value
    return result


def tensor_from_authors(name: str, value: Tensor) -> Tensor:
    """The authors' parameter `name` (or its gradient) in our shape."""
    if name.endswith("patch_embed.proj.weight"):
        return rearrange(value, "d c pt ph pw -> d (c pt ph pw)")
    return rearrange(value, "1 1 d -> d") if name == "mask_token" else value


def _rename(name: str, prefixes: Names) -> str | None:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name[len(old) :]
    return None
