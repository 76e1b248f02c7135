"""Folders of runs as training leaves them, without training."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import IMAGE_SIZE, NUM_FRAMES, TINY
from torch import nn

from simvtp_ds.config import PretrainConfig
from simvtp_ds.config_files import save_config
from simvtp_ds.data.text import Tokenizer, train_wordpiece
from simvtp_ds.data_config import DataConfig
from simvtp_ds.engine.checkpoint import RECORD, Position
from simvtp_ds.engine.saving import WEIGHTS
from simvtp_ds.files import sha256
from simvtp_ds.finetune_config import FinetuneConfig, RetrievalObjectiveConfig
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.model.simvtp import SimVTP

CAPTIONS = ["a red ball rolls", "a dog", "two dogs run to a ball"]
DATA = DataConfig(num_frames=NUM_FRAMES, image_size=IMAGE_SIZE, max_words=8)


@functools.cache
def words() -> Tokenizer:
    """The tokenizer of these runs."""
    return train_wordpiece(CAPTIONS, 100)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode with every parameter random (zero biases would hide a bias that is not used)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return model.eval()


def pretraining_run(folder: Path, **fields: Any) -> SimVTP:
    """Write the folder of a pre-training run with one checkpoint; the model in it."""
    model = SimVTP(TINY, NUM_FRAMES, IMAGE_SIZE, words().vocab_size)
    return write_run(folder, PretrainConfig(data=DATA, model=TINY, **fields), model)


def finetuning_run(folder: Path, shared: bool = False, match: bool = False) -> TwoTower:
    """The same of a fine-tuning run."""
    model = TwoTower(TINY, NUM_FRAMES, IMAGE_SIZE, words().vocab_size, shared=shared, match=match)
    objectives = RetrievalObjectiveConfig(vtm=float(match))
    towers = "shared" if shared else "untied"
    return write_run(folder, FinetuneConfig(data=DATA, model=TINY, towers=towers, objectives=objectives), model)


def write_run(folder: Path, config: PretrainConfig | FinetuneConfig, model: Any) -> Any:
    """Write the folder of a run with one checkpoint of the model, with random weights."""
    randomised(model)
    checkpoint = folder / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    words().save(folder / "tokenizer")
    save_config(config, folder / "config.yaml")
    save_file(model.state_dict(), checkpoint / WEIGHTS)
    files = {WEIGHTS: {"sha256": sha256(checkpoint / WEIGHTS), "bytes": (checkpoint / WEIGHTS).stat().st_size}}
    position = Position(1, 1, 2, "fp32", 1, 0, "", "")
    (checkpoint / RECORD).write_text(json.dumps({"position": asdict(position), "files": files}))
    return model
