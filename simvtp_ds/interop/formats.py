"""Which model a file of weights is, by the names in it, and its tensors under our names.

A format is a list of prefixes, theirs and ours (interop/authors.py), the parts that must be whole, and what may be in
the file without a place in our model. A name outside of these is an error: it is another model then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from simvtp_ds.interop import huggingface
from simvtp_ds.interop.authors import FINETUNE_NAMES, FINETUNE_UNUSED, PRETRAIN_NAMES, Names, renamed, to_our_shape
from simvtp_ds.interop.report import Report
from simvtp_ds.interop.sizes import Kind, shapes_of, sizes_of
from simvtp_ds.model.patches import sine_positions

# Parts of a model: all of their tensors are in a file, or none.
PARTS: dict[Kind, tuple[str, ...]] = {
    "pretrain": ("patches.", "encoder.", "decoder.", "words.", "word_head.", "match_head."),
    "finetune": ("video.", "text."),
}


class Format(NamedTuple):
    """One of the models that we read."""

    name: str
    names: Names
    needs: tuple[str, ...]  # parts that must be there
    ignored: tuple[str, ...] = ()  # prefixes of names that may be there, unused
    kind: Kind = "pretrain"


_VIDEO = ("patches.", "encoder.")
OURS = Format("simvtp-ds, pre-training", tuple((part, part) for part in PARTS["pretrain"]), ())
OUR_TOWERS = Format(
    "simvtp-ds, two towers",
    tuple((part, part) for part in (*PARTS["finetune"], "match_norm.", "match_head.")),
    PARTS["finetune"],
    kind="finetune",
)
AUTHORS = Format("SimVTP (authors), pre-training", PRETRAIN_NAMES, PARTS["pretrain"])
AUTHORS_TOWERS = Format(
    "SimVTP (authors), two towers", FINETUNE_NAMES, PARTS["finetune"], FINETUNE_UNUSED, kind="finetune"
)
VIDEOMAE = Format(
    "VideoMAE, pre-training",
    tuple(pair for pair in PRETRAIN_NAMES if not pair[0].startswith(("text_", "vtm_"))),
    (*_VIDEO, "decoder."),
)
# Its norm stands behind the mean over tokens; it goes back to the end of the encoder (init_towers.py moves it forth).
VIDEOMAE_FINETUNED = Format(
    "VideoMAE, fine-tuned",
    (
        ("patch_embed.proj.", "patches."),
        ("blocks.", "encoder.blocks.layers."),
        ("fc_norm.", "encoder.norm."),
        ("norm.", "encoder.norm."),
    ),
    _VIDEO,
    ("head.",),
)
HUGGINGFACE = Format("VideoMAE of Hugging Face", huggingface.NAMES, _VIDEO, ("classifier.",))
BERT = Format(
    "BERT embeddings",
    (("embeddings.", "words.embeddings."),),
    ("words.",),
    ("encoder.layer.", "pooler.", "cls.", "embeddings.position_ids"),
)


class Read(NamedTuple):
    """Weights under our names."""

    state: dict[str, Tensor]  # fp32
    kind: Kind
    report: Report
    sizes: dict[str, int | float]  # fields of ModelConfig that the shapes tell


def detect(names: Iterable[str]) -> Format | None:
    """The format that uses such names; None where there is no such."""
    names = set(names)

    def some(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    if "video.patches.weight" in names:
        return OUR_TOWERS
    if "video_encoder.patch_embed.proj.weight" in names:
        return AUTHORS_TOWERS
    if "encoder.patch_embed.proj.weight" in names:
        return AUTHORS if some("text_embeddings.") else VIDEOMAE
    if huggingface.is_videomae(names):
        return HUGGINGFACE
    if "patch_embed.proj.weight" in names and some("blocks.0.attn.q_bias"):
        return VIDEOMAE_FINETUNED
    if "patches.weight" in names or some("words.embeddings."):
        return OURS
    if {"embeddings.word_embeddings.weight", "bert.embeddings.word_embeddings.weight"} & names:
        return BERT
    return None


def to_our_names(tensors: Mapping[str, Tensor], path: str) -> Read:
    """The tensors of a file under our names, in fp32, every name accounted for.

    Raises:
        ValueError: it is another model, or one of the tensors is missing, unknown, or of a shape that does not fit.
    """
    found = detect(tensors)
    if found is None:
        raise ValueError(
            f"{path} is of another architecture, with names such as {', '.join(sorted(tensors)[:3])}: this reads "
            "SimVTP, VideoMAE (also Hugging Face's) and BERT"
        )
    tensors, notes = _without_positions(tensors, path)
    theirs = dict(tensors)  # name in the file -> tensor, under names that a table of prefixes can rename
    origin = {name: [name] for name in tensors}
    how: dict[str, str] = {}
    if found is HUGGINGFACE:
        theirs, origin, how = huggingface.to_tables(tensors, path)
    elif found is BERT:
        origin = {
            name.removeprefix("bert.").replace(".gamma", ".weight").replace(".beta", ".bias"): [name]
            for name in tensors
        }
        theirs = {name: tensors[old] for name, (old,) in origin.items()}

    state: dict[str, Tensor] = {}
    used: dict[str, str] = {}
    ignored: list[str] = []
    unknown: list[str] = []
    for name, value in theirs.items():
        if name.startswith(found.ignored):  # never true of an empty tuple
            ignored += origin[name]
            continue
        ours = renamed(name, found.names)
        if ours is None:
            unknown += origin[name]
            continue
        if ours in state:
            raise ValueError(f"{path} gives {ours} twice, the second time as {name}: it is of another architecture")
        if not value.is_floating_point():
            raise ValueError(f"{path}: {name} holds {value.dtype}, not floating-point weights")
        state[ours] = to_our_shape(ours, value)
        for old in origin[name]:
            used[old] = ours
            if state[ours].shape != value.shape:
                how[old] = f"{list(value.shape)} to {list(state[ours].shape)}"
            elif value.dtype != torch.float32:
                how.setdefault(old, f"{str(value.dtype).removeprefix('torch.')} to float32")
        state[ours] = state[ours].float()
    if unknown:
        raise ValueError(
            f"{path} looks like {found.name}, but has {len(unknown)} tensors that it has no place for, such as "
            f"{', '.join(sorted(unknown)[:3])}: it is of another architecture"
        )
    missing = check_whole(state, found, path)
    sizes = sizes_of(state, found.kind) | _patch_sizes(theirs)
    report = Report(path, found.name, used, sorted(ignored), missing, how, notes)
    return Read(state, found.kind, report, sizes)


def check_whole(state: Mapping[str, Tensor], found: Format, path: str) -> list[str]:
    """Names of the model's parts that are not there at all.

    Raises:
        ValueError: a part is there in parts, a needed one is not there, or a shape does not fit the others.
    """
    shared = found.kind == "finetune" and not any(name.startswith("text.blocks.") for name in state)
    match = found.kind == "pretrain" or "match_head.weight" in state
    try:
        expected = shapes_of(state, found.kind, shared, match)
    except ValueError as error:
        raise ValueError(f"{path} looks like {found.name}, but {error}") from None
    parts = PARTS[found.kind] + (("match_norm.", "match_head.") if found.kind == "finetune" and match else ())
    absent = {part for part in parts if part not in found.needs and not any(n.startswith(part) for n in state)}
    missing = [name for name in expected if name not in state and not name.startswith(tuple(absent))]
    if missing:
        raise ValueError(
            f"{path} looks like {found.name}, but lacks {', '.join(missing[:3])} ({len(missing)} in all): it is "
            "damaged, or of another architecture"
        )
    for name, value in state.items():
        if name not in expected:
            raise ValueError(f"{path} looks like {found.name}, but {name} is no tensor of it")
        if value.shape != expected[name]:
            raise ValueError(
                f"{path}: {name} has the shape {list(value.shape)}, the other tensors ask for {list(expected[name])}: "
                "the file is damaged or of another architecture"
            )
    return [name for name in expected if name not in state]


def _without_positions(tensors: Mapping[str, Tensor], path: str) -> tuple[dict[str, Tensor], list[str]]:
    """Position tables of the ViTs taken out where they are the sines that the model computes for any clip.

    Raises:
        ValueError: they are learnt.
    """
    tables = [
        name for name in tensors if name.endswith("pos_embed") or name == "videomae.embeddings.position_embeddings"
    ]
    for name in tables:
        table = tensors[name]
        if table.dim() != 3 or not torch.allclose(table[0].float(), sine_positions(*table.shape[1:]), atol=1e-3):
            raise ValueError(f"{path} is of another architecture: its position table {name} is learnt, ours are sines")
    notes = [f"{name} is the table of sines that the model computes itself" for name in tables]
    return {name: value for name, value in tensors.items() if name not in tables}, notes


def _patch_sizes(theirs: Mapping[str, Tensor]) -> dict[str, int]:
    """Frames and pixels of a patch, which the kernel of a Conv3d tells and a matrix does not."""
    for name, value in theirs.items():
        square = value.dim() == 5 and value.shape[3] == value.shape[4]
        if square and name.endswith(("patch_embed.proj.weight", "patch_embeddings.projection.weight")):
            return {"tubelet_size": value.shape[2], "patch_size": value.shape[3]}
    return {}
