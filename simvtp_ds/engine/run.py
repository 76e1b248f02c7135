"""One run from its inputs to its last checkpoint: what pre-training and fine-tuning have in common."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch

from simvtp_ds.config_files import save_config
from simvtp_ds.data.loader import Loader
from simvtp_ds.ds_settings import DeepSpeedSettings
from simvtp_ds.engine.checkpoint import Position
from simvtp_ds.engine.compute import apply
from simvtp_ds.engine.deepspeed_engine import start_engine
from simvtp_ds.engine.ema import Ema
from simvtp_ds.engine.failures import TrainingError
from simvtp_ds.engine.job import Job
from simvtp_ds.engine.meters import BadClipLog, Journal
from simvtp_ds.engine.mirror import open_mirror
from simvtp_ds.engine.outcome import FAILED, REFUSED, write_outcome
from simvtp_ds.engine.ranks import Control, Rank, connect
from simvtp_ds.engine.resume import RefusedError, check_inputs, check_pickles, check_position, find_start
from simvtp_ds.engine.watchdog import Watchdog
from simvtp_ds.model.blocks import use_fast_norm_if_available


def lock_run(run: Path) -> IO[str]:
    """Make the run's folder and take it for this process; the lock goes when the process ends, however it ends.

    It holds against other hosts, too, where the file system passes flock on (NFS since 4.0 does, Lustre with -o flock).

    Raises:
        TrainingError: another run has it, or it cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / ".lock").open("a+")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        print(f"process {os.getpid()} on {platform.node()}", file=lock, flush=True)
    except BlockingIOError:
        holder = (run / ".lock").read_text().strip() or "another run"
        raise TrainingError(f"{run} is in use by {holder}: name another --run.dir") from None
    except OSError as error:
        raise TrainingError(f"run.dir {run} cannot be written: {error}") from error
    return lock


def source_commit() -> str | None:
    """The commit of this code, None outside a repository."""
    here = Path(__file__).parent
    found = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def describe_environment(rank: Rank, hosts: list[str], settings: DeepSpeedSettings, engine: Any) -> dict[str, Any]:
    """Versions, hosts and sizes, for whoever wants to reproduce the run."""
    packages = ("torch", "deepspeed", "timm", "transformers", "tokenizers", "av", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "commit": source_commit(),
        "hosts": hosts,
        "world_size": rank.world_size,
        "deepspeed_config": settings.path,
        "zero_stage": settings.zero_stage,
        "dtype": settings.dtype,
        "optimizer": type(inner_optimizer(engine)).__name__,
    }


def inner_optimizer(engine: Any) -> Any:
    """The optimizer that updates the weights, inside ZeRO's wrapper."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def open_journal(job: Job, run: Path, engine: Any, rank: Rank, hosts: list[str], first_step: int) -> Journal:
    """Write down what runs here, on the main rank."""
    save_config(job.config, run / "config.yaml")
    (run / "deepspeed.json").write_text(json.dumps(job.settings.raw, indent=2) + "\n")
    environment = describe_environment(rank, hosts, job.settings, engine)
    (run / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")
    if job.start is not None:
        (run / "init.json").write_text(json.dumps(job.start.as_json(), indent=1) + "\n")
    (run / "tokenizer").mkdir(exist_ok=True)
    job.tokenizer.save(run / "tokenizer")
    return Journal(run, job.schedule.total_steps, first_step)


def train(job: Job, rank: Rank, resume: str, watchdog: Watchdog) -> str:
    """Train, from the start or from the newest valid checkpoint; every rank calls it.

    Args:
        job: What to train.
        rank: This process.
        resume: "auto", "none", or the path of a checkpoint.
        watchdog: Of this process.

    Returns:
        "finished", or "stopped" when a signal asked for it.

    Raises:
        TrainingError: the run cannot go on; the message says why and what to do.
    """
    run = Path(job.config.run.dir)
    lock, problem = None, ""
    try:
        lock = lock_run(run) if rank.is_main else None
    except TrainingError as error:
        problem = str(error)
    outcome, reason = FAILED, ""
    try:
        outcome, reason = _train(job, rank, resume, watchdog, problem)
        return outcome
    except TrainingError as error:
        outcome, reason = REFUSED if isinstance(error, RefusedError) else FAILED, str(error)
        raise
    finally:
        if lock is not None:
            write_outcome(run, outcome, reason)
            lock.close()


def _train(job: Job, rank: Rank, resume: str, watchdog: Watchdog, problem: str) -> tuple[str, str]:
    """`train` once the main rank has the folder, or the problem with that: the outcome, and who asked to stop."""
    settings, config, timeout = job.settings, job.config.run, job.config.run.step_timeout
    run = Path(config.dir)
    connect(rank, timeout)
    control = Control(timeout)
    if problem := control.gather(problem)[0]:  # told to all: ranks of other hosts would wait for the main one
        raise TrainingError(problem)
    hosts = control.gather(platform.node())
    if not all(control.gather(run.is_dir())):
        raise TrainingError(f"run.dir {run} is not on a file system that all hosts share: name one that is")
    watchdog.log_to(run)

    position = Position(
        step=0,
        world_size=rank.world_size,
        zero_stage=settings.zero_stage,
        dtype=settings.dtype,
        global_batch=settings.global_batch(rank.world_size),
        seed=config.seed,
        manifest=job.manifest.fingerprint,
        model=json.dumps(job.identity),
    )
    notes = job.start.lines() if job.start is not None else []
    second = Path(config.mirror) if config.mirror else None
    mirror = open_mirror(run, second, config.keep, rank, control)
    folder = find_start(run, second, resume, rank, control, notes.append)
    convert = False
    if folder is not None:
        then = check_position(folder, position)
        convert = then.world_size != rank.world_size and settings.zero_stage > 0
        position = replace(position, step=then.step)
        check_inputs(folder, job.config, job.tokenizer)
        check_pickles(folder)

    torch.manual_seed(config.seed)
    use_fast_norm_if_available()
    task, groups = job.build()
    apply(job.config.compute, task)
    parameters = sum(p.numel() for p in task.parameters())
    engine = start_engine(task, groups, settings, universal=convert)
    loader = Loader(
        job.examples,
        job.config.data,
        micro_batch=settings.micro_batch,
        accumulation=settings.accumulation,
        rank=rank.rank,
        world_size=rank.world_size,
        start_step=position.step,
        end_step=job.schedule.total_steps,
        on_bad=BadClipLog(run / "bad_clips" / f"rank_{rank.rank}.jsonl"),
    )
    trainer = job.trainer(
        engine=engine,
        loader=loader,
        settings=settings,
        schedule=job.schedule,
        position=position,
        config=config,
        rank=rank,
        control=control,
        watchdog=watchdog,
        ema=Ema(engine, job.ema_decay) if job.ema_decay else None,
        mirror=mirror,
    )
    if folder is not None:
        trainer.load(folder, convert)
    if rank.is_main:
        trainer.journal = open_journal(job, run, engine, rank, hosts, position.step)
    for note in notes:
        trainer.say(note)
    trainer.say(
        f"{type(task).__name__} {parameters / 1e6:.2f} M parameters, {len(job.examples)} clips, {rank.world_size} "
        f"ranks x {settings.micro_batch} clips x {settings.accumulation} = {position.global_batch} a step, "
        f"{settings.dtype}, ZeRO-{settings.zero_stage}, {type(inner_optimizer(engine)).__name__}, steps "
        f"{position.step} to {job.schedule.total_steps} ({loader.steps_per_epoch} an epoch)"
        + (f", resumed from {folder}" if folder else "")
        + (", converted for another number of ranks" if convert else "")
    )
    try:
        outcome = trainer.train()
        if mirror is not None:
            watchdog.feed()
            for line in mirror.close(timeout / 3):
                trainer.say(line)
    except TrainingError as error:
        trainer.say(f"ended: {error}")
        raise
    finally:
        loader.close()
        if trainer.journal is not None:
            trainer.journal.close()
    # Not after an error: other ranks may still wait in a collective, and this would wait for them.
    torch.distributed.destroy_process_group()
    return outcome, trainer.stopped_by
