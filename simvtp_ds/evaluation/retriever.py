"""A trained model ready to search, from the folder of its run: pre-trained or fine-tuned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simvtp_ds.config_files import load_config, saved_class
from simvtp_ds.data.text import FILE_NAME, Tokenizer
from simvtp_ds.data_config import DataConfig
from simvtp_ds.engine.checkpoint import find_checkpoint
from simvtp_ds.engine.saving import AVERAGE, WEIGHTS, read_weights
from simvtp_ds.evaluation.compute import computed, evaluating
from simvtp_ds.evaluation.embed import read_captions
from simvtp_ds.evaluation.share import BATCH
from simvtp_ds.files import sha256
from simvtp_ds.finetune_config import FinetuneConfig
from simvtp_ds.interop.autodetect import read_source
from simvtp_ds.interop.exported import CONFIG, is_exported, read_exported_config
from simvtp_ds.interop.reading import HF_WEIGHTS
from simvtp_ds.interop.source import whole_model
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.model.simvtp import SimVTP


@dataclass(frozen=True)
class Retriever:
    """A model and what it needs to read clips and captions; `simvtp_ds.load` gives one.

    Dimensions: B clips or captions, T = data.num_frames, S = data.image_size, D = the model's width.
    """

    model: Any  # embed_video, embed_text, and match_pairs where `matches`
    tokenizer: Tokenizer
    data: DataConfig  # how the model saw clips in training
    run: Path
    checkpoint: Path
    kind: str  # "pretrain" or "finetune"
    matches: bool  # has a matching head that was trained
    temperature: float  # of the contrast it was trained with
    identity: str  # hex digest of weights, sizes and tokenizer

    def encode_video(self, clips: Tensor | np.ndarray) -> Tensor:
        """One unit vector a clip: uint8 [B, T, S, S, 3], RGB, to float32 [B, D] on the CPU.

        Raises:
            ValueError: the clips have another dtype or shape.
        """
        frames = torch.as_tensor(clips)
        shape = (self.data.num_frames, self.data.image_size, self.data.image_size, 3)
        if frames.dtype != torch.uint8 or frames.dim() != 5 or tuple(frames.shape[1:]) != shape or not len(frames):
            raise ValueError(
                f"clips are {str(frames.dtype).removeprefix('torch.')} {list(frames.shape)}; this model reads uint8 "
                f"[B, {', '.join(map(str, shape))}]: B clips of T frames, height, width and RGB from 0 to 255"
            )
        with evaluating(self.model):
            return torch.cat([computed(self.model.embed_video, part.to(self._device)) for part in frames.split(BATCH)])

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """One unit vector a caption, cut after data.max_words tokens: float32 [B, D] on the CPU.

        Raises:
            ValueError: it is not a sequence of one string or more.
        """
        if isinstance(captions, str) or not captions or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"captions are {captions!r:.80}; give a list of one string or more")
        vectors = []
        with evaluating(self.model):
            for start in range(0, len(captions), BATCH):
                part = captions[start : start + BATCH]
                words, word_mask = read_captions(part, self.tokenizer, self.data.max_words)
                vectors.append(computed(self.model.embed_text, words.to(self._device), word_mask.to(self._device)))
        return torch.cat(vectors)

    @staticmethod
    def similarity(text: Tensor, video: Tensor) -> Tensor:
        """Cosine of every caption with every clip: unit vectors [Q, D] and [V, D] to [Q, V]."""
        return text @ video.T

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def load_retriever(path: Path) -> Retriever:
    """A model on the CPU; of a run that keeps a moving average of the weights, that.

    Args:
        path: A run folder (its newest undamaged checkpoint), one of its checkpoints, or a folder of launch/convert.py.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, has no average, or does not fit its configuration.
    """
    if is_exported(path):
        return _exported(path)
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


def chosen(path: Path) -> Path:
    """The folder that `load_retriever` reads of `path`: of a run that still trains, its newest checkpoint by now.

    Raises:
        ValueError: there is none.
    """
    return path if is_exported(path) else find_checkpoint(path)[1]


def _exported(folder: Path) -> Retriever:
    source = read_source(folder)
    model, config = whole_model(source), read_exported_config(folder)
    if source.tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer: convert the model again, with --tokenizer")
    names = (HF_WEIGHTS[0], CONFIG, FILE_NAME, "vocab.txt")
    files = b"".join(sha256(folder / name).encode() for name in names if (folder / name).is_file())
    return Retriever(
        model=model,
        tokenizer=source.tokenizer,
        data=DataConfig(**config.clip),
        run=folder,
        checkpoint=folder,
        kind=source.kind,
        matches=config.matches,
        temperature=config.temperature,
        identity=hashlib.sha256(files).hexdigest(),
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
