"""The two towers of fine-tuning from a pre-training model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from simvtp_ds.config import ModelConfig
from simvtp_ds.data.augment import PIXEL_MEAN
from simvtp_ds.model.retrieval import TwoTower

# (pre-training model's, towers'), each a prefix of names. fc_norm starts from the encoder's final norm: the norm only
# moves from before the mean over tokens to behind it, and what it has learnt about its channels holds on either side.
# The joint pass keeps it where it was.
VIDEO_NAMES = (
    ("patches.", "video.patches."),
    ("encoder.blocks.", "video.blocks."),
    ("encoder.norm.", "video.fc_norm."),
    ("words.", "text.words."),
)
UNTIED_NAMES = (("encoder.blocks.", "text.blocks."), ("encoder.norm.", "text.fc_norm."))
MATCH_NAMES = (("encoder.norm.", "match_norm."), ("match_head.", "match_head."))
# Heads of pre-training; match_head is used where the towers match, else ignored as well.
IGNORED = ("decoder.", "word_head.", "match_head.")


class InitReport(NamedTuple):
    """Names of the pre-training model, sorted: each is in one of the two."""

    used: tuple[str, ...]
    ignored: tuple[str, ...]


def towers_from_pretraining(
    state: Mapping[str, Tensor], shared: bool, match: bool
) -> tuple[dict[str, Tensor], InitReport]:
    """State dict of a `TwoTower` (for a strict load), and what became of each name of the pre-training model.

    Both towers get the same tensors, not copies; loading copies them.

    Args:
        state: State dict of a `SimVTP`; its sizes are taken from it.
        shared: The towers share their encoder.
        match: The towers have a matching head.

    Raises:
        ValueError: a tensor is missing, has a shape that does not fit the others, or is of another model.
    """
    names = VIDEO_NAMES + (() if shared else UNTIED_NAMES) + (MATCH_NAMES if match else ())
    expected = _expected_shapes(state, shared, match)
    towers, used = {}, set()
    for old, new in names:
        for name in (name for name in expected if name.startswith(new)):
            source = old + name.removeprefix(new)
            towers[name] = _tensor(state, source)
            used.add(source)
            if towers[name].shape != expected[name]:
                raise ValueError(
                    f"{source} of the pre-training weights has the shape {list(towers[name].shape)}, the others ask "
                    f"for {list(expected[name])}: the file is damaged or of another model"
                )
    ignored = state.keys() - used
    strangers = sorted(name for name in ignored if not name.startswith(IGNORED))
    if strangers:
        raise ValueError(f"{strangers[0]} is not a tensor of the pre-training model: name weights that it has written")
    return towers, InitReport(tuple(sorted(used)), tuple(sorted(ignored)))


def _expected_shapes(state: Mapping[str, Tensor], shared: bool, match: bool) -> dict[str, torch.Size]:
    """Names and shapes of the towers whose sizes are those of `state`, by building them without memory."""
    block = "encoder.blocks.layers."
    width = _size(state, f"{block}0.attn.qkv.weight", axis=1)
    patch_values = _size(state, "patches.weight", axis=1)
    blocks = [int(found[1]) for name in state if (found := re.match(re.escape(block) + r"(\d+)\.", name))]
    with torch.device("meta"):
        model = TwoTower(
            ModelConfig(
                width=width,
                depth=max(blocks) + 1,
                heads=1,
                mlp_ratio=(_size(state, f"{block}0.mlp.fc2.weight", axis=1) + 0.5) / width,  # timm rounds down
                # How a patch is made up of pixels and frames does not show in its weights.
                patch_size=1,
                tubelet_size=patch_values // len(PIXEL_MEAN),
                text_positions=_size(state, "words.embeddings.position_embeddings.weight", axis=0),
            ),
            num_frames=patch_values // len(PIXEL_MEAN),
            image_size=1,
            vocab_size=_size(state, "words.embeddings.word_embeddings.weight", axis=0),
            shared=shared,
            match=match,
        )
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _size(state: Mapping[str, Tensor], name: str, axis: int) -> int:
    found = _tensor(state, name)
    if found.dim() != 2:
        raise ValueError(f"{name} of the pre-training weights has the shape {list(found.shape)}; it must be a matrix")
    return found.shape[axis]


def _tensor(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(
            f"the weights have no {name}: they are not a pre-training model's (checkpoints/step_*/weights.safetensors "
            "of a pre-training run)"
        )
    return state[name]
