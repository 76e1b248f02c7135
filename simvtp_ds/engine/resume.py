"""Which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from simvtp_ds.config import PretrainConfig
from simvtp_ds.config_files import load_config, saved_class
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.engine import checkpoint
from simvtp_ds.engine.failures import TrainingError
from simvtp_ds.engine.ranks import Control, Rank
from simvtp_ds.finetune_config import FinetuneConfig


def find_start(run: Path, resume: str, rank: Rank, control: Control, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint to start from; None: from the beginning.

    Raises:
        TrainingError: the named checkpoint is not complete, all of the run's are damaged, or the run has some and
            was told not to resume.
    """
    existing = control.gather([p.name for p in checkpoint.steps_of(run)])[0]
    if resume == "none":
        if existing:
            raise TrainingError(f"{run} has checkpoints, and --resume is none: use --resume auto or another --run.dir")
        return None
    if resume != "auto":
        return checkpoint.agree_on([Path(resume)], rank, control, warn)
    if not existing:
        return None
    return checkpoint.agree_on([run / "checkpoints" / name for name in existing], rank, control, warn)


def check_inputs(folder: Path, config: PretrainConfig | FinetuneConfig, tokenizer: Tokenizer) -> None:
    """What a checkpoint's record does not tell, but its run's folder does: the words and the weights it started from.

    Raises:
        TrainingError: they are others now. Words of another tokenizer of the same size would train on as nonsense; a
            model to start from would not be read at all.
    """
    run = folder.resolve().parent.parent
    words, saved = run / "tokenizer", run / "config.yaml"
    if words.is_dir() and not Tokenizer.load(words).same_words(tokenizer):
        raise TrainingError(f"cannot go on from {folder}: the tokenizer has other words than the one in {words}")
    if not saved.is_file() or saved_class(saved) is not type(config):
        return
    before = load_config(saved, type(config))
    for name in ("init", "init_words"):
        then, now = getattr(before, name), getattr(config, name)
        if bool(then) != bool(now) or Path(then).resolve() != Path(now).resolve():
            raise TrainingError(
                f"cannot go on from {folder}: {name} was {then or 'empty'}, is {now or 'empty'}. Start with the same "
                f"--{name}, or name another --run.dir"
            )
