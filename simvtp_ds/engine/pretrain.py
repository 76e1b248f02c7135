"""A pre-training run from its configuration to its last checkpoint."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

from simvtp_ds.config import PretrainConfig
from simvtp_ds.config_files import save_config
from simvtp_ds.data.loader import Loader
from simvtp_ds.data.manifest import Manifest
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.ds_settings import DeepSpeedSettings
from simvtp_ds.engine import checkpoint
from simvtp_ds.engine.failures import TrainingError, Watchdog
from simvtp_ds.engine.meters import BadClipLog, Journal
from simvtp_ds.engine.ranks import Control, Rank, connect
from simvtp_ds.engine.saving import load
from simvtp_ds.engine.schedule import Schedule, build_schedule
from simvtp_ds.engine.train import Trainer, start_engine
from simvtp_ds.model.blocks import use_fast_norm_if_available
from simvtp_ds.model.params import parameter_groups
from simvtp_ds.model.simvtp import SimVTP
from simvtp_ds.objectives.pretrain import PretrainTask


@dataclass(frozen=True)
class Inputs:
    """What a run reads, opened and checked before any model is built."""

    manifest: Manifest
    tokenizer: Tokenizer
    schedule: Schedule


def open_inputs(config: PretrainConfig, settings: DeepSpeedSettings, world_size: int) -> Inputs:
    """Open manifest and tokenizer, and plan the steps.

    Raises:
        ValueError: one of them is missing or damaged, there are fewer clips than one step takes, or no step to make.
    """
    if not config.data.manifest:
        raise ValueError("--data.manifest is not set: name the folder that launch/prepare.py wrote")
    manifest = Manifest.open(config.data.manifest)
    tokenizer = Tokenizer.load(config.data.tokenizer or config.data.manifest)
    batch = settings.global_batch(world_size)
    if len(manifest) < batch:
        raise ValueError(
            f"{config.data.manifest} has {len(manifest)} clips, one step takes {batch} "
            f"(train_micro_batch_size_per_gpu {settings.micro_batch} x gradient_accumulation_steps "
            f"{settings.accumulation} x {world_size} ranks): lower one of them in {settings.path}"
        )
    return Inputs(manifest, tokenizer, build_schedule(config.schedule, len(manifest) // batch))


def lock_run(run: Path) -> IO[str]:
    """Make the run's folder and take it for this process; the lock goes when the process ends, however it ends.

    Raises:
        TrainingError: another run has it, or it cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / ".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TrainingError(f"{run} is in use by another run on this host: name another --run.dir") from None
    except OSError as error:
        raise TrainingError(f"run.dir {run} cannot be written: {error}") from error
    return lock


def describe_environment(rank: Rank, hosts: list[str], settings: DeepSpeedSettings, engine: Any) -> dict[str, Any]:
    """Versions, hosts and sizes, for whoever wants to reproduce the run."""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    packages = ("torch", "deepspeed", "timm", "transformers", "tokenizers", "av", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "commit": commit.stdout.strip() or None,
        "hosts": hosts,
        "world_size": rank.world_size,
        "deepspeed_config": settings.path,
        "zero_stage": settings.zero_stage,
        "dtype": settings.dtype,
        "optimizer": type(inner_optimizer(engine)).__name__,
    }


def run_pretraining(
    config: PretrainConfig, settings: DeepSpeedSettings, rank: Rank, inputs: Inputs, resume: str
) -> str:
    """Train, from the start or from the newest valid checkpoint; every rank calls it.

    Args:
        config: The resolved configuration.
        settings: The user's DeepSpeed JSON.
        rank: This process.
        inputs: From `open_inputs`.
        resume: "auto", "none", or the path of a checkpoint.

    Returns:
        "finished", or "stopped" when a signal asked for it.

    Raises:
        TrainingError: the run cannot go on; the message says why and what to do.
    """
    run = Path(config.run.dir)
    lock = lock_run(run) if rank.is_main else None
    watchdog = Watchdog(config.run.step_timeout)
    connect(rank, config.run.step_timeout)
    control = Control(config.run.step_timeout)
    hosts = control.gather(platform.node())
    if not all(control.gather(run.is_dir())):
        raise TrainingError(f"run.dir {run} is not on a file system that all hosts share: name one that is")

    data, masks = config.data, config.masks
    position = checkpoint.Position(
        step=0,
        world_size=rank.world_size,
        zero_stage=settings.zero_stage,
        dtype=settings.dtype,
        global_batch=settings.global_batch(rank.world_size),
        seed=config.run.seed,
        manifest=inputs.manifest.fingerprint,
        model=json.dumps([asdict(config.model), data.num_frames, data.image_size, inputs.tokenizer.vocab_size]),
    )
    notes: list[str] = []
    folder = find_start(run, resume, rank, control, notes.append)
    if folder is not None:
        position = checkpoint.Position(**{**asdict(position), "step": checkpoint.check_position(folder, position)})

    torch.manual_seed(config.run.seed)
    use_fast_norm_if_available()
    model = SimVTP(config.model, data.num_frames, data.image_size, inputs.tokenizer.vocab_size)
    task = PretrainTask(model, config.objectives)
    engine = start_engine(task, parameter_groups(task, settings.weight_decay), settings)
    if folder is not None:
        load(engine, folder)

    schedule = inputs.schedule
    journal = None
    if rank.is_main:
        save_config(config, run / "config.yaml")
        (run / "deepspeed.json").write_text(json.dumps(settings.raw, indent=2) + "\n")
        (run / "environment.json").write_text(
            json.dumps(describe_environment(rank, hosts, settings, engine), indent=1) + "\n"
        )
        (run / "tokenizer").mkdir(exist_ok=True)
        inputs.tokenizer.save(run / "tokenizer")
        journal = Journal(run, schedule.total_steps, position.step)
        for note in notes:
            journal.say(note)
        parameters = sum(p.numel() for p in task.parameters())
        journal.say(
            f"SimVTP {parameters / 1e6:.2f} M parameters, {len(inputs.manifest)} clips, {rank.world_size} ranks x "
            f"{settings.micro_batch} clips x {settings.accumulation} = {position.global_batch} a step, "
            f"{settings.dtype}, ZeRO-{settings.zero_stage}, {type(inner_optimizer(engine)).__name__}, steps "
            f"{position.step} to {schedule.total_steps} ({len(inputs.manifest) // position.global_batch} an epoch)"
            + (f", resumed from {folder}" if folder else "")
        )
    loader = Loader(
        inputs.manifest,
        inputs.tokenizer,
        data,
        masks,
        model.grid,
        seed=config.run.seed,
        micro_batch=settings.micro_batch,
        accumulation=settings.accumulation,
        rank=rank.rank,
        world_size=rank.world_size,
        start_step=position.step,
        end_step=schedule.total_steps,
        on_bad=BadClipLog(run / "bad_clips" / f"rank_{rank.rank}.jsonl"),
    )
    trainer = Trainer(
        engine=engine,
        loader=loader,
        settings=settings,
        schedule=schedule,
        position=position,
        config=config.run,
        rank=rank,
        control=control,
        watchdog=watchdog,
        journal=journal,
    )
    try:
        return trainer.train()
    except TrainingError as error:
        trainer.say(f"ended: {error}")
        raise
    finally:
        loader.close()
        if journal is not None:
            journal.close()
        if lock is not None:
            lock.close()


def inner_optimizer(engine: Any) -> Any:
    """The optimizer that updates the weights, inside ZeRO's wrapper."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


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
