"""The two towers of fine-tuning from a pre-training model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from simvtp_ds.interop.sizes import shapes_of

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
    expected = shapes_of(state, "pretrain")
    towers, used = {}, set()
    for old, new in names:
        for source in (name for name in expected if name.startswith(old)):
            if source not in state:
                raise ValueError(
                    f"the weights have no {source}: they are not a pre-training model's "
                    "(checkpoints/step_*/weights.safetensors of a pre-training run)"
                )
            if state[source].shape != expected[source]:
                raise ValueError(
                    f"{source} of the pre-training weights has the shape {list(state[source].shape)}, the others ask "
                    f"for {list(expected[source])}: the file is damaged or of another model"
                )
            towers[new + source.removeprefix(old)] = state[source]
            used.add(source)
    ignored = state.keys() - used
    strangers = sorted(name for name in ignored if not name.startswith(IGNORED))
    if strangers:
        raise ValueError(f"{strangers[0]} is not a tensor of the pre-training model: name weights that it has written")
    return towers, InitReport(tuple(sorted(used)), tuple(sorted(ignored)))
