"""Weights from a file or folder of any kind that we read: which kind it is, and all that it tells of the model in it.

engine/start.py reads runs and their checkpoints besides.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from simvtp_ds.config import ModelConfig
from simvtp_ds.data.text import FILE_NAME, Tokenizer
from simvtp_ds.interop import huggingface
from simvtp_ds.interop.authors import model_config
from simvtp_ds.interop.exported import CONFIG, is_exported, read_exported_config
from simvtp_ds.interop.formats import Read, to_our_names
from simvtp_ds.interop.reading import HF_WEIGHTS, read_json, read_weights_file, read_weights_folder
from simvtp_ds.interop.source import Source, described_by, different
from simvtp_ds.interop.zero import is_zero_checkpoint, read_zero_checkpoint, tag_folder


def read_source(path: str | Path) -> Source:
    """Weights of a file, a folder, or (BERT) a model in the local cache of Hugging Face; nothing is downloaded.

    Raises:
        ValueError: it is nothing that we read, or damaged, or not safe to read; one line that says what to do.
    """
    place = Path(path)
    if not place.exists():
        place = cached(str(path))
    if place.is_file() and place.name in HF_WEIGHTS and (place.parent / CONFIG).is_file():
        place = place.parent
    if place.is_file():
        return _from_file(place)
    if is_exported(place):
        return _from_export(place)
    if is_zero_checkpoint(place):
        return _from_zero(tag_folder(place))
    if (place / CONFIG).is_file():
        return _from_huggingface(place)
    raise ValueError(
        f"{path} is neither a run (a folder with config.yaml) nor a checkpoint (RUN/checkpoints/step_N), nor a folder "
        "of launch/convert.py, Hugging Face or DeepSpeed, nor a file of weights"
    )


def cached(name: str) -> Path:
    """The folder of a model in the local cache of Hugging Face.

    Raises:
        ValueError: it is not there, or this is no name of a model.
    """
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(name, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            pass
    raise ValueError(
        f"{name} is neither a run, a checkpoint, nor a file or folder of weights, nor a model in the local cache of "
        "Hugging Face: nothing is downloaded here, `hf download NAME` fetches one"
    )


def _from_file(path: Path) -> Source:
    tensors, metadata = read_weights_file(path)
    sizes = {}
    if any(name.startswith("weights/") for name in tensors):  # a file of golden numbers (golden.py)
        tensors = {n.removeprefix("weights/"): t for n, t in tensors.items() if n.startswith("weights/")}
        try:
            told = json.loads(metadata["config"])
            sizes = asdict(model_config(told))
            clip = {"num_frames": told["num_frames"], "image_size": told["image_size"]}
            temperature = told["temperature"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is a damaged file of golden numbers: its config lacks {error}") from None
        read = to_our_names(tensors, str(path))
        return Source(path, read.kind, read.state, (read.report,), sizes, clip, temperature=temperature)
    read = to_our_names(tensors, str(path))
    return Source(path, read.kind, read.state, (read.report,), read.sizes)


def _from_export(folder: Path) -> Source:
    described = read_exported_config(folder)
    read = to_our_names(read_weights_file(folder / HF_WEIGHTS[0])[0], str(folder))
    if read.kind != described.kind or (wrong := different(read.sizes, asdict(described.model))):
        told = f"its weights are those of {read.kind}" if read.kind != described.kind else wrong
        raise ValueError(f"{folder / CONFIG} does not fit the weights beside it: {told}")
    return Source(
        folder,
        read.kind,
        read.state,
        (read.report,),
        asdict(described.model) if read.kind == "finetune" else _told(described.model, read),
        described.clip,
        _tokenizer(folder),
        described.temperature,
        described.matches,
    )


def _told(model: ModelConfig, read: Read) -> dict[str, Any]:
    """The sizes of those parts that are there; config.json has default ones for the others."""
    of_parts = {
        "encoder.": ("depth", "heads", "mlp_ratio", "patch_size", "tubelet_size"),
        "decoder.": ("decoder_width", "decoder_depth", "decoder_heads"),
        "words.": ("text_positions", "text_dropout"),
    }
    left_out = {n for part, names in of_parts.items() for n in names if not any(s.startswith(part) for s in read.state)}
    return {name: value for name, value in asdict(model).items() if name not in left_out}


def _from_zero(folder: Path) -> Source:
    read = to_our_names(read_zero_checkpoint(folder), str(folder))
    report = replace(read.report, format=f"DeepSpeed checkpoint of {read.report.format}")
    source = Source(folder, read.kind, read.state, (report,), read.sizes)
    run = folder.resolve().parent.parent  # RUN/checkpoints/TAG, as our runs have it
    if (run / "config.yaml").is_file():
        return described_by(run / "config.yaml", source, run / "tokenizer")
    return source


def _from_huggingface(folder: Path) -> Source:
    config = read_json(folder / CONFIG)
    kind = config.get("model_type")
    if kind not in ("videomae", "bert"):
        raise ValueError(f"{folder} is of another architecture: its config.json says {kind!r}, not videomae or bert")
    tensors = read_weights_folder(folder)
    if kind == "videomae":
        sizes, clip = huggingface.model_sizes(config, str(folder))
        if config.get("use_mean_pooling", True) and not any("layernorm." in n or "fc_norm." in n for n in tensors):
            raise ValueError(
                f"{folder} is of another architecture: with use_mean_pooling its encoder ends without a norm, ours has "
                "one"
            )
        read = to_our_names(tensors, str(folder))
        return Source(folder, read.kind, read.state, (read.report,), sizes | read.sizes, clip)
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{folder} is of another architecture: its position embeddings are not absolute ones")
    read = to_our_names(tensors, str(folder))
    return Source(folder, read.kind, read.state, (read.report,), read.sizes, tokenizer=_tokenizer(folder))


def _tokenizer(folder: Path) -> Tokenizer | None:
    return Tokenizer.load(folder) if any((folder / name).is_file() for name in (FILE_NAME, "vocab.txt")) else None
