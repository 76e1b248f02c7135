"""What a run starts from: weights of `init` and words of `init_words`, checked against the run before any model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simvtp_ds.config import PretrainConfig
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.data_config import require
from simvtp_ds.engine.checkpoint import RECORD, find_checkpoint
from simvtp_ds.engine.saving import AVERAGE, WEIGHTS, read_weights
from simvtp_ds.finetune_config import FinetuneConfig
from simvtp_ds.interop.autodetect import read_source
from simvtp_ds.interop.formats import to_our_names
from simvtp_ds.interop.init_towers import towers_from_pretraining
from simvtp_ds.interop.report import Report
from simvtp_ds.interop.source import Source, described_by, different
from simvtp_ds.model.simvtp import SimVTP


@dataclass(frozen=True)
class Start:
    """Weights for the model of a run, by its names; what has none keeps its random start."""

    state: dict[str, Tensor]
    reports: tuple[Report, ...]
    missing: list[str]  # names of the model that no file gives

    def lines(self) -> list[str]:
        """For the log: a line a file, and what starts at random."""
        parts = sorted({name.split(".")[0] for name in self.missing})
        rest = f"init: {len(self.missing)} tensors start at random: {', '.join(f'{part}.*' for part in parts)}"
        files = [line for each in self.reports for line in (each.summary(), *each.notes)]
        return [f"init: {line}" for line in files] + [rest] * bool(self.missing)

    def as_json(self) -> dict[str, Any]:
        """All of it, for the run's folder."""
        return {"files": [asdict(report) for report in self.reports], "missing": self.missing}


def open_source(path: str | Path) -> Source:
    """Weights of a run (its newest undamaged checkpoint), of a checkpoint, or of anything that `read_source` reads.

    Of a run that keeps a moving average of the weights, that.

    Raises:
        ValueError: there is nothing to read, or it is damaged or of another architecture.
    """
    place = Path(path)
    if not (place / "config.yaml").is_file() and not (place / RECORD).is_file():
        return read_source(path)
    run, folder = find_checkpoint(place)
    name = AVERAGE if (folder / AVERAGE).is_file() else WEIGHTS
    read = to_our_names(read_weights(folder, name)[0], str(folder / name))
    source = Source(folder, read.kind, read.state, (read.report,), read.sizes)
    return described_by(run / "config.yaml", source, run / "tokenizer")


def pretraining_start(config: PretrainConfig, tokenizer: Tokenizer) -> Start | None:
    """The weights that `init` and `init_words` give a pre-training run; None where it starts from scratch.

    Raises:
        ValueError: they are of other sizes than the run's model, of other words than the run's, or two towers.
    """
    source = open_source(config.init) if config.init else None
    if config.init_words:
        words = open_source(config.init_words)
        source = words.words() if source is None else source.with_words_of(words)
    if source is None:
        return None
    require(
        source.kind == "pretrain",
        f"init {config.init} holds two towers, which pre-training cannot start from: name the pre-training run",
    )
    wrong = different(source.sizes, asdict(config.model))
    require(
        not wrong,
        f"{source.path} does not fit this run: its {wrong}; choose a --preset or --model.* that fits, or other weights",
    )
    check_words(source, tokenizer)
    with torch.device("meta"):
        model = SimVTP(config.model, config.data.num_frames, config.data.image_size, tokenizer.vocab_size)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    misfit = [name for name, value in source.state.items() if shapes[name] != value.shape]
    require(not misfit, f"{source.path} does not fit this run: {misfit[:1]} has another shape than the run's model")
    reports = assumed(source, source.reports, config.model.heads)
    return Start(source.state, reports, [name for name in shapes if name not in source.state])


def towers_start(config: FinetuneConfig, source: Source) -> Start:
    """The weights for the two towers of a fine-tuning run, from what `finetuning_source` gave.

    Raises:
        ValueError: the weights are not of a whole model, or of other towers.
    """
    shared, match = config.towers == "shared", config.objectives.vtm > 0
    if source.kind == "pretrain":
        lacking = [part for part in ("patches.", "encoder.", "words.") if not source.has(part)]
        require(
            not lacking,
            f"init {config.init} has no {' and no '.join(lacking)}*: "
            + ("name a BERT with --init_words" if lacking == ["words."] else "name a model of video"),
        )
        require(
            not match or source.has("match_head."),
            f"init {config.init} has no matching head to start from: set objectives.vtm to 0",
        )
        state, report = towers_from_pretraining(source.state, shared, match)
        reports = tuple(each.without(report.ignored) for each in source.reports)
        return Start(state, assumed(source, reports, source.model().heads), [])
    require(
        source.shared == shared,
        f"init {config.init} has {'shared' if source.shared else 'untied'} towers: set towers to that",
    )
    heads = {name for name in source.state if name.startswith(("match_norm.", "match_head."))}
    require(not match or bool(heads), f"init {config.init} has no matching head to start from: set objectives.vtm to 0")
    unused = set() if match else heads
    state = {name: value for name, value in source.state.items() if name not in unused}
    reports = tuple(each.without(unused) for each in source.reports)
    return Start(state, assumed(source, reports, source.model().heads), [])


def assumed(source: Source, reports: tuple[Report, ...], heads: int) -> tuple[Report, ...]:
    """The reports with what was taken for granted because the files do not tell it."""
    notes = []
    if "depth" in source.sizes and "heads" not in source.sizes:
        notes.append(f"{source.path} does not tell its attention heads: {heads} are taken")
    if source.vocab_size is not None and source.tokenizer is None:
        notes.append(f"{source.path} comes without a tokenizer: its {source.vocab_size} words are taken for the run's")
    first, *others = reports
    return (replace(first, notes=[*first.notes, *notes]), *others)


def finetuning_source(config: FinetuneConfig) -> Source | None:
    """What a fine-tuning run starts from; None: from scratch.

    Raises:
        ValueError: it cannot be read.
    """
    if not config.init:
        require(not config.init_words, f"init_words {config.init_words} needs an encoder: name one with --init")
        return None
    source = open_source(config.init)
    return source.with_words_of(open_source(config.init_words)) if config.init_words else source


def check_words(source: Source, tokenizer: Tokenizer) -> None:
    """ValueError where word embeddings are of other words than the run's."""
    if source.vocab_size is None:
        return
    require(
        source.vocab_size == tokenizer.vocab_size,
        f"{source.path} has embeddings of {source.vocab_size} words, this run's tokenizer has {tokenizer.vocab_size}: "
        "prepare the clips with the tokenizer of those weights (launch/prepare.py --tokenizer)",
    )
    require(
        source.tokenizer is None or source.tokenizer.same_words(tokenizer),
        f"{source.path} was trained with other words than those of this run's tokenizer: prepare the clips with its "
        "own (launch/prepare.py --tokenizer)",
    )
