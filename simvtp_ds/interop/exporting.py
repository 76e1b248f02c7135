"""Weights out: our own folder, and the files that others read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from simvtp_ds.files import replacing, sync_folder
from simvtp_ds.interop import huggingface
from simvtp_ds.interop.authors import FINETUNE_NAMES, state_to_authors
from simvtp_ds.interop.exported import CONFIG, ExportedConfig, write_exported
from simvtp_ds.interop.onnx_towers import require_packages, write_onnx
from simvtp_ds.interop.reading import HF_WEIGHTS
from simvtp_ds.interop.source import Source, clip_of, whole_model

TEMPERATURE = 0.05  # SimVTP's
VIDEO_PARTS = ("patches.", "encoder.", "decoder.")
WHOLE = (*VIDEO_PARTS, "words.", "word_head.", "match_head.")


def refuse_existing(out: Path) -> None:
    """ValueError where something is there already, or nothing can be written."""
    if out.exists():
        raise ValueError(f"--out {out} is there already: name another, or remove it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out} cannot be written: there is no folder {out.parent}")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `out` when all is done, and goes when something fails."""
    partial = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        partial.rename(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def exported_config(source: Source) -> ExportedConfig:
    """What `--to simvtp-ds` writes beside the weights.

    Raises:
        ValueError: the sizes of the model are not known.
    """
    model = source.model()
    clip = clip_of(source)
    return ExportedConfig(
        kind=source.kind,
        model=model,
        clip={**clip, "max_words": min(clip["max_words"], model.text_positions)},
        shared=source.kind == "finetune" and source.shared,
        matches=source.matches and source.has("match_head."),
        temperature=TEMPERATURE if source.temperature is None else source.temperature,
    )


def to_simvtp_ds(source: Source, out: Path) -> list[str]:
    """Our own folder, which `simvtp_ds.load`, `--init` and launch/convert.py read; the names that are left out."""
    config = exported_config(source)
    with new_folder(out) as folder:
        write_exported(folder, source.state, config)
        if source.tokenizer is not None:
            source.tokenizer.save(folder)
    return []


def to_huggingface(source: Source, out: Path) -> list[str]:
    """A folder of VideoMAEForPreTraining; the names that are left out.

    Raises:
        ValueError: the model has no pixel decoder, or transformers reads the folder otherwise than it was written.
    """
    model = _needing(source, VIDEO_PARTS, "hf-videomae").model()
    clip = clip_of(source)
    state = huggingface.from_ours(source.state, model)
    with new_folder(out) as folder:
        save_file(state, folder / HF_WEIGHTS[0], {"format": "pt"})
        config = huggingface.config_of(model, clip["num_frames"], clip["image_size"])
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        check_huggingface(folder, state)
    return [name for name in source.state if not name.startswith(VIDEO_PARTS)]


def check_huggingface(folder: Path, state: dict[str, Tensor]) -> None:
    """Load the folder with the installed transformers, some of whose releases read zeros for the attention's biases.

    Raises:
        ValueError: a tensor in the loaded model is not the one that was written.
    """
    from transformers import VideoMAEForPreTraining

    loaded = VideoMAEForPreTraining.from_pretrained(folder, dtype=torch.float32, local_files_only=True).state_dict()
    for name, value in state.items():
        new = name.replace("q_bias", "query.bias").replace("v_bias", "value.bias")
        read = loaded.get(name, loaded.get(new))
        if read is None or not torch.equal(read, value):
            raise ValueError(
                f"the installed transformers does not read {name} as it was written: install another release"
            )


def to_videomae(source: Source, out: Path) -> list[str]:
    """A checkpoint of VideoMAE's pre-training, {"model": ...}; the names that are left out."""
    model = _needing(source, VIDEO_PARTS, "videomae").model()
    kept = {name: value for name, value in source.state.items() if name.startswith(VIDEO_PARTS)}
    _write_checkpoint(state_to_authors(kept, model), out)
    return [name for name in source.state if name not in kept]


def to_simvtp(source: Source, out: Path) -> list[str]:
    """A checkpoint of the authors' code, {"model": ...}: pre-training, or two towers; the names that are left out."""
    if source.kind == "pretrain":
        model = _needing(source, WHOLE, "simvtp").model()
        _write_checkpoint(state_to_authors(source.state, model), out)
        return []
    model, state = source.model(), untied(source.state)
    left_out = [name for name in state if name.startswith(("match_norm.", "match_head."))]
    theirs = state_to_authors({n: v for n, v in state.items() if n not in left_out}, model, FINETUNE_NAMES)
    # Each of their towers is a whole encoder and carries the other's embeddings, unused.
    for name in [*theirs]:
        if name.startswith("video_encoder.patch_embed."):
            theirs[name.replace("video_encoder.", "text_encoder.")] = theirs[name]
        if name.startswith("text_encoder.text_embeddings."):
            theirs[name.replace("text_encoder.", "video_encoder.")] = theirs[name]
    _write_checkpoint(theirs, out)
    return left_out


def untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of two towers where two may share one encoder."""
    encoder = ("video.blocks.", "video.fc_norm.")
    twin = {n.replace("video.", "text.", 1): value for n, value in state.items() if n.startswith(encoder)}
    return twin | state


def _needing(source: Source, parts: tuple[str, ...], to: str) -> Source:
    lacking = [part for part in parts if source.kind != "pretrain" or not source.has(part)]
    if lacking:
        raise ValueError(f"--to {to} takes a pre-training model, and {source.path} has no {lacking[0]}*")
    return source


def _write_checkpoint(state: dict[str, Tensor], out: Path) -> None:
    with replacing(out) as temporary:
        torch.save({"model": {name: value.contiguous() for name, value in state.items()}}, temporary)


def to_onnx(source: Source, out: Path) -> list[str]:
    """A folder of the two towers as ONNX, checked with onnxruntime; the names that are left out.

    Raises:
        ValueError: packages are missing, the model is not whole, or onnxruntime computes something else.
    """
    require_packages()
    model = whole_model(source)
    with new_folder(out) as folder:
        write_onnx(model, exported_config(source), folder)
        if source.tokenizer is not None:
            source.tokenizer.save(folder)
    return [name for name in source.state if name.startswith(("decoder.", "word_head.", "match_"))]


FORMATS: dict[str, Callable[[Source, Path], list[str]]] = {
    "simvtp-ds": to_simvtp_ds,
    "hf-videomae": to_huggingface,
    "videomae": to_videomae,
    "simvtp": to_simvtp,
    "onnx": to_onnx,
}
