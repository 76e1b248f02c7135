"""A trained model ready to search, from the folder of its run: pre-trained or fine-tuned."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from simvtp_ds.config_files import load_config, saved_class
from simvtp_ds.data.text import FILE_NAME, Tokenizer
from simvtp_ds.data_config import DataConfig
from simvtp_ds.engine.checkpoint import find_checkpoint
from simvtp_ds.engine.saving import AVERAGE, WEIGHTS, read_weights
from simvtp_ds.finetune_config import FinetuneConfig
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.model.simvtp import SimVTP


@dataclass(frozen=True)
class Retriever:
    """A model and what it needs to read clips and captions."""

    model: Any  # embed_video, embed_text, and match_pairs where `matches`
    tokenizer: Tokenizer
    data: DataConfig  # how the model saw clips in training
    run: Path
    checkpoint: Path
    kind: str  # "pretrain" or "finetune"
    matches: bool  # has a matching head that was trained
    temperature: float  # of the contrast it was trained with
    identity: str  # hex digest of weights, sizes and tokenizer


def load_retriever(path: Path) -> Retriever:
    """The model of a run or a checkpoint, on the CPU; the moving average of its weights where the run keeps one.

    Args:
        path: A run folder (its newest undamaged checkpoint) or one of its checkpoints.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, has no average, or does not fit its configuration.
    """
    run, checkpoint = find_checkpoint(path)
    config_class = saved_class(run / "config.yaml")
    config = load_config(run / "config.yaml", config_class)
    data, tokenizer = config.data, Tokenizer.load(run / "tokenizer")
    sizes = (config.model, data.num_frames, data.image_size, tokenizer.vocab_size)
    name, matches = WEIGHTS, config.objectives.vtm > 0
    if config_class is FinetuneConfig:
        kind = "finetune"
        model: nn.Module = TwoTower(*sizes, shared=config.towers == "shared", match=matches)
        if config.ema_decay > 0:
            name = AVERAGE
    else:
        kind = "pretrain"
        model = SimVTP(*sizes)
    weights, digest = read_weights(checkpoint, name)
    fill(model, weights, checkpoint / name)
    words = hashlib.sha256((run / "tokenizer" / FILE_NAME).read_bytes()).hexdigest()
    return Retriever(
        model=model,
        tokenizer=tokenizer,
        data=data,
        run=run,
        checkpoint=checkpoint,
        kind=kind,
        matches=matches,
        temperature=config.objectives.contrastive.temperature,
        identity=hashlib.sha256(f"{kind} {digest} {words} {sizes}".encode()).hexdigest(),
    )


def fill(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Put weights into a model.

    Raises:
        ValueError: names or sizes are not the model's.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    strange = [name for name in weights if name not in own]
    sizes = [f"{n} {list(w.shape)}" for n, w in weights.items() if n in own and own[n].shape != w.shape]
    wrong = {"lacks": missing, "has unknown": strange, "has other sizes:": sizes}
    told = "; ".join(f"{what} {', '.join(names[:3])} ({len(names)} in all)" for what, names in wrong.items() if names)
    if told:
        raise ValueError(f"{path} does not fit the run's config.yaml: it {told}")
    model.load_state_dict(weights)
