"""The folder that launch/convert.py writes: model.safetensors, config.json, tokenizer.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from simvtp_ds.config import ModelConfig
from simvtp_ds.interop.reading import HF_WEIGHTS, read_json
from simvtp_ds.interop.sizes import Kind

CONFIG = "config.json"
FORMAT = "simvtp-ds"
CLIP_FIELDS = ("num_frames", "frame_stride", "image_size", "max_words")  # of DataConfig, that a model is made for


@dataclass(frozen=True)
class ExportedConfig:
    """What config.json holds."""

    kind: Kind
    model: ModelConfig
    clip: dict[str, Any]  # CLIP_FIELDS
    shared: bool  # two towers share one encoder
    matches: bool  # has a matching head that was trained
    temperature: float  # of the contrast it was trained with
    version: int = 1


def is_exported(folder: Path) -> bool:
    """Whether launch/convert.py wrote this folder."""
    try:
        return read_json(folder / CONFIG).get("format") == FORMAT
    except ValueError:
        return False


def read_exported_config(folder: Path) -> ExportedConfig:
    """Read config.json.

    Raises:
        ValueError: a field is missing or impossible.
    """
    held = read_json(folder / CONFIG)
    try:
        if held["version"] != 1:
            raise ValueError(f"version {held['version']} is newer than this release reads")
        return ExportedConfig(
            kind=held["kind"],
            model=ModelConfig(**held["model"]),
            clip={name: int(held["clip"][name]) for name in CLIP_FIELDS},
            shared=bool(held["shared"]),
            matches=bool(held["matches"]),
            temperature=float(held["temperature"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({error}): convert the model again") from None


def write_exported(folder: Path, state: dict[str, Tensor], config: ExportedConfig) -> None:
    """Write weights and config.json into a folder that is there."""
    held: dict[str, Any] = {"format": FORMAT, **asdict(config)}
    # Copies, as some files give several names one tensor, which safetensors refuses.
    copies = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    save_file(copies, folder / HF_WEIGHTS[0], {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(held, indent=1) + "\n")
