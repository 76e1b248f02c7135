"""Hugging Face's VideoMAE: its names into ours and back.

It keeps queries, keys and values apart, and their biases under either of two names: `q_bias` (in files, up to now) or
`query.bias` (in memory, since transformers 5). Both are read; some releases of transformers read zeros instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from simvtp_ds.config import ModelConfig

NAMES = (
    ("videomae.embeddings.patch_embeddings.projection.", "patches."),
    ("videomae.encoder.layer.", "encoder.blocks.layers."),
    ("videomae.layernorm.", "encoder.norm."),
    ("fc_norm.", "encoder.norm."),
    ("encoder_to_decoder.", "decoder.project."),
    ("mask_token", "decoder.mask_token"),
    ("decoder.decoder_layers.", "decoder.blocks.layers."),
    ("decoder.norm.", "decoder.norm."),
    ("decoder.head.", "decoder.head."),
)
# Inside a block: (theirs, ours).
_INNER = (
    ("attention.output.dense.", "attn.proj."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
)
_BLOCK = re.compile(r"^(.*\.(?:layer|decoder_layers)\.\d+\.)(.*)$")
_ATTENTION = "attention.attention."
_BIASES = {"q_bias": "q_bias", "query.bias": "q_bias", "v_bias": "v_bias", "value.bias": "v_bias"}
_PARTS = ("query", "key", "value")


def is_videomae(names: Iterable[str]) -> bool:
    """Whether these are names of VideoMAEForPreTraining, VideoMAEModel or VideoMAEForVideoClassification."""
    projection = "embeddings.patch_embeddings.projection.weight"
    names = set(names)
    bare = projection in names and any(name.startswith("encoder.layer.0.attention.attention.") for name in names)
    return f"videomae.{projection}" in names or (bare and "embeddings.cls_token" not in names)


def to_tables(
    tensors: Mapping[str, Tensor], path: str
) -> tuple[dict[str, Tensor], dict[str, list[str]], dict[str, str]]:
    """Their tensors with one projection for queries, keys and values, under names that `NAMES` renames to ours.

    Returns:
        The tensors; the names in the file that made each; and, for those that were joined, how.

    Raises:
        ValueError: one of the three is missing.
    """
    bare = not any(name.startswith("videomae.") for name in tensors)
    joined: dict[str, Tensor] = {}
    origin: dict[str, list[str]] = {}
    how: dict[str, str] = {}
    for name, value in tensors.items():
        full = f"videomae.{name}" if bare and name.startswith(("embeddings.", "encoder.", "layernorm.")) else name
        block, inner = found.groups() if (found := _BLOCK.match(full)) else (full, "")
        own = inner.removeprefix(_ATTENTION)
        if inner.startswith(_ATTENTION) and own in _BIASES:
            full = f"{block}attn.qkv.{_BIASES[own]}"
        elif inner.startswith(_ATTENTION) and own.removesuffix(".weight") in _PARTS:
            full = f"{block}attn.qkv.weight"
            if own != "query.weight":
                continue  # with the queries
            names = [name.replace("query.weight", f"{part}.weight") for part in _PARTS]
            lacking = [n for n in names if n not in tensors]
            if lacking:
                raise ValueError(f"{path} looks like Hugging Face's VideoMAE, but lacks {lacking[0]}: it is damaged")
            value = torch.cat([tensors[n] for n in names])
            origin[full] = names
            how |= dict.fromkeys(names, "queries, keys and values joined")
        else:
            for theirs, ours in _INNER:
                if inner.startswith(theirs):
                    full = block + ours + inner.removeprefix(theirs)
                    break
        if full in joined:
            raise ValueError(f"{path} gives {full} twice, as {origin[full][0]} and {name}: it is of another model")
        joined[full] = value
        origin.setdefault(full, [name])
    return joined, origin, how


def from_ours(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of VideoMAEForPreTraining, under the names of its files, from the state dict of a `SimVTP`."""
    size = {"pt": config.tubelet_size, "ph": config.patch_size, "pw": config.patch_size}
    tables = [(ours, theirs) for theirs, ours in NAMES if theirs != "fc_norm."]
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        theirs = next((new + name.removeprefix(old) for old, new in tables if name.startswith(old)), None)
        if theirs is None:
            continue  # words and heads, which VideoMAE has not
        block, inner = found.groups() if (found := _BLOCK.match(theirs)) else (theirs, "")
        if inner == "attn.qkv.weight":
            for part, weight in zip(_PARTS, value.chunk(3), strict=True):
                result[f"{block}{_ATTENTION}{part}.weight"] = weight
            continue
        if inner.startswith("attn.qkv."):
            theirs = f"{block}{_ATTENTION}{inner.removeprefix('attn.qkv.')}"
        elif inner:
            old, new = next((ours, hf) for hf, ours in _INNER if inner.startswith(ours))
            theirs = block + new + inner.removeprefix(old)
        elif name == "patches.weight":
            value = rearrange(value, "d (c pt ph pw) -> d c pt ph pw", **size)
        elif name == "decoder.mask_token":
            value = rearrange(value, "d -> 1 1 d")
        result[theirs] = value
    return {name: value.contiguous() for name, value in result.items()}


def model_sizes(config: Mapping[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a config.json tells that no shape does: fields of ModelConfig, and of DataConfig.

    Raises:
        ValueError: a setting that our model does not have.
    """
    wanted = {"hidden_act": "gelu", "num_channels": 3, "qv_bias": True}
    other = {name: config[name] for name, value in wanted.items() if config.get(name, value) != value}
    if other:
        raise ValueError(f"{path} is of another architecture: its config.json has {other}, ours are {wanted}")
    model = {"heads": "num_attention_heads", "decoder_heads": "decoder_num_attention_heads"}
    data = {"num_frames": "num_frames", "image_size": "image_size"}
    return (
        {ours: config[theirs] for ours, theirs in model.items() if isinstance(config.get(theirs), int)},
        {ours: config[theirs] for ours, theirs in data.items() if isinstance(config.get(theirs), int)},
    )


def config_of(model: ModelConfig, num_frames: int, image_size: int) -> dict[str, Any]:
    """The config.json of VideoMAEForPreTraining."""
    return {
        "architectures": ["VideoMAEForPreTraining"],
        "model_type": "videomae",
        "dtype": "float32",
        "image_size": image_size,
        "num_frames": num_frames,
        "patch_size": model.patch_size,
        "tubelet_size": model.tubelet_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": int(model.width * model.mlp_ratio),
        "decoder_hidden_size": model.decoder_width,
        "decoder_num_hidden_layers": model.decoder_depth,
        "decoder_num_attention_heads": model.decoder_heads,
        "decoder_intermediate_size": int(model.decoder_width * model.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-6,
        "norm_pix_loss": True,
        "num_channels": 3,
        "qv_bias": True,
        "use_mean_pooling": False,
    }
