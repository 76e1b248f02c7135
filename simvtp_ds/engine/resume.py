"""Which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from simvtp_ds.config import PretrainConfig
from simvtp_ds.config_files import load_config, saved_class
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.engine.checkpoint import Position, hash_errors, record_of, steps_of
from simvtp_ds.engine.failures import TrainingError
from simvtp_ds.engine.ranks import Control, Rank
from simvtp_ds.finetune_config import FinetuneConfig

# What DeepSpeed 0.19.8 pickles besides tensors, numbers and names.
WRITTEN_BY_DEEPSPEED = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


class RefusedError(TrainingError):
    """Starting again would end here again: the settings must change first; the exit code is 2."""


def find_start(
    run: Path, mirror: Path | None, resume: str, rank: Rank, control: Control, warn: Callable[[str], None]
) -> Path | None:
    """The checkpoint to start from; None: from the beginning. `mirror`: second location, the worse one of equals.

    Raises:
        TrainingError: the named checkpoint is not complete, or all of the run's are damaged.
        RefusedError: the run has some and was told not to resume.
    """
    found = steps_of(run) + (steps_of(mirror) if mirror else [])
    existing = control.gather(sorted(found, key=lambda folder: int(folder.name.removeprefix("step_")), reverse=True))[0]
    if resume == "none":
        if existing:
            whose = existing[0].parent.parent
            raise RefusedError(f"{whose} has checkpoints, and --resume is none: use --resume auto or another --run.dir")
        return None
    if resume != "auto":
        return agree_on([Path(resume)], rank, control, warn)
    if not existing:
        return None
    return agree_on(existing, rank, control, warn)


def agree_on(candidates: list[Path], rank: Rank, control: Control, warn: Callable[[str], None]) -> Path:
    """The first checkpoint that every rank finds complete and undamaged; the ranks share the work of hashing it.

    Args:
        candidates: Folders, best first, the same list on every rank.
        rank: This process.
        control: Agreements with the others.
        warn: Called with a line for every checkpoint passed over.

    Raises:
        TrainingError: none of them can be used.
    """
    reasons = []
    for folder in candidates:
        try:
            errors = hash_errors(folder, record_of(folder), rank.rank, rank.world_size)
        except (ValueError, OSError) as error:
            errors = [str(error)]
        found = [error for of_rank in control.gather(errors) for error in of_rank]
        if not found:
            return folder
        reasons.append(found[0])
        warn(f"checkpoint {folder.name} is passed over: {found[0]}")
    raise TrainingError(
        f"no usable checkpoint: {'; '.join(reasons)}. Name one with --resume PATH, or start over in another --run.dir"
    )


def check_position(folder: Path, now: Position) -> Position:
    """Where the checkpoint `folder` was written; another number of ranks than now is no obstacle.

    Raises:
        RefusedError: going on would not be the same run: another global batch, seed, manifest, model, stage or dtype.
    """
    then = Position(**record_of(folder)["position"])
    differing = [n for n in asdict(now) if n not in ("step", "world_size") and getattr(now, n) != getattr(then, n)]
    if differing:
        pairs = ", ".join(f"{n} was {getattr(then, n)}, is {getattr(now, n)}" for n in differing)
        ranks = ""
        if "global_batch" in differing and then.world_size != now.world_size:
            ranks = (
                f" (there were {then.world_size} ranks, now there are {now.world_size}: change "
                "gradient_accumulation_steps in the DeepSpeed JSON, or let launch/supervise.py do it)"
            )
        raise RefusedError(
            f"cannot go on from {folder}: {pairs}{ranks}. Start with the same settings, or name another --run.dir"
        )
    return then


def check_pickles(folder: Path) -> None:
    """Refuse a checkpoint whose files would load code: DeepSpeed unpickles them whole, and a sha256 that stands beside
    a file says only that it is what its writer wrote. Nothing is unpickled here.

    Raises:
        RefusedError: a file names a class or function that DeepSpeed does not write into checkpoints.
    """
    for file in sorted(folder.glob("*.pt")):
        try:
            foreign = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - WRITTEN_BY_DEEPSPEED
        except (ValueError, RuntimeError, OSError) as error:
            raise RefusedError(f"{file} is no file of torch.save ({error}): use a checkpoint of your own") from error
        if foreign:
            raise RefusedError(f"{file} would load {', '.join(sorted(foreign))}: use a checkpoint of your own")


def check_inputs(folder: Path, config: PretrainConfig | FinetuneConfig, tokenizer: Tokenizer) -> None:
    """What a checkpoint's record does not tell, but its run's folder does: the words and the weights it started from.

    Raises:
        RefusedError: they are others now. Words of another tokenizer of the same size would train on as nonsense; a
            model to start from would not be read at all.
    """
    run = folder.resolve().parent.parent
    words, saved = run / "tokenizer", run / "config.yaml"
    if words.is_dir() and not Tokenizer.load(words).same_words(tokenizer):
        raise RefusedError(f"cannot go on from {folder}: the tokenizer has other words than the one in {words}")
    if not saved.is_file() or saved_class(saved) is not type(config):
        return
    before = load_config(saved, type(config))
    for name in ("init", "init_words"):
        then, now = getattr(before, name), getattr(config, name)
        if bool(then) != bool(now) or Path(then).resolve() != Path(now).resolve():
            raise RefusedError(
                f"cannot go on from {folder}: {name} was {then or 'empty'}, is {now or 'empty'}. Start with the same "
                f"--{name}, or name another --run.dir"
            )
