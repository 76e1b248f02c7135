"""What the shapes of weights tell of a model's sizes, and whether they fit each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from simvtp_ds.config import ModelConfig
from simvtp_ds.data.augment import PIXEL_MEAN
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.model.simvtp import SimVTP

Kind: TypeAlias = Literal["pretrain", "finetune"]  # whose names: SimVTP's or TwoTower's

# Heads do not show in any shape. Those of the ViTs that are published: S, B, L, H.
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}


class Places(NamedTuple):
    """Names that tell sizes."""

    patches: str
    blocks: str
    words: str


PLACES: dict[Kind, Places] = {
    "pretrain": Places("patches.weight", "encoder.blocks.layers.", "words.embeddings."),
    "finetune": Places("video.patches.weight", "video.blocks.layers.", "text.words.embeddings."),
}


def sizes_of(state: Mapping[str, Tensor], kind: Kind) -> dict[str, Any]:
    """Fields of `ModelConfig` that the shapes tell, of those parts that are there.

    Raises:
        ValueError: a tensor that tells a size is missing or no matrix.
    """
    places, sizes = PLACES[kind], {}
    if any(name.startswith(places.blocks) for name in state):
        width = matrix(state, f"{places.blocks}0.attn.qkv.weight").shape[1]
        hidden = matrix(state, f"{places.blocks}0.mlp.fc2.weight").shape[1]
        sizes |= {"width": width, "depth": depth(state, places.blocks), "mlp_ratio": hidden / width}
    if any(name.startswith("decoder.") for name in state):
        project = matrix(state, "decoder.project.weight")
        sizes |= {"decoder_width": project.shape[0], "decoder_depth": depth(state, "decoder.blocks.layers.")}
    if any(name.startswith(places.words) for name in state):
        sizes["text_positions"] = matrix(state, f"{places.words}position_embeddings.weight").shape[0]
        sizes.setdefault("width", matrix(state, f"{places.words}word_embeddings.weight").shape[1])
    return sizes


def vocabulary(state: Mapping[str, Tensor], kind: Kind) -> int | None:
    """Rows of the word embeddings (V); None where there are none."""
    table = state.get(f"{PLACES[kind].words}word_embeddings.weight")
    return None if table is None else table.shape[0]


def shapes_of(
    state: Mapping[str, Tensor], kind: Kind, shared: bool = False, match: bool = True
) -> dict[str, torch.Size]:
    """Names and shapes of the whole model whose sizes are those of `state`, by building it without memory.

    What `state` does not tell (a decoder, words that are not there) has any size.
    """
    sizes = sizes_of(state, kind)
    width, ratio = sizes.get("width", 2), sizes.get("mlp_ratio", 4.0)
    name = PLACES[kind].patches
    values = matrix(state, name).shape[1] // len(PIXEL_MEAN) if name in state else 1
    config = ModelConfig(
        **{
            **sizes,
            "heads": 1,
            "decoder_heads": 1,
            "mlp_ratio": (round(ratio * width) + 0.5) / width,  # timm rounds down
            # How a patch is made up of pixels and frames does not show in its weights.
            "patch_size": 1,
            "tubelet_size": max(values, 1),
        }
    )
    words = vocabulary(state, kind) or 1
    with torch.device("meta"):
        model: nn.Module = (
            SimVTP(config, config.tubelet_size, 1, words)
            if kind == "pretrain"
            else TwoTower(config, config.tubelet_size, 1, words, shared=shared, match=match)
        )
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def matrix(state: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor of that name.

    Raises:
        ValueError: it is not there, or has not two axes.
    """
    if name not in state:
        raise ValueError(f"the weights have no {name}: they are not those of a whole model")
    if state[name].dim() != 2 or not state[name].numel():
        raise ValueError(f"{name} of the weights has the shape {list(state[name].shape)}; it must be a matrix")
    return state[name]


def depth(state: Mapping[str, Tensor], blocks: str) -> int:
    """One more than the highest number of a block; ValueError where there is none."""
    pattern = re.compile(re.escape(blocks) + r"(\d+)\.")
    numbers = [int(found[1]) for name in state if (found := pattern.match(name))]
    if not numbers or max(numbers) >= len(numbers):
        raise ValueError(f"the weights have no blocks {blocks}0 ... of one transformer")
    return max(numbers) + 1
