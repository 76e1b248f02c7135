"""Checkpoints into and out of the engine: complete, or not there at all.

A checkpoint is written into a folder whose name starts with `.partial`, hashed by all ranks together, and renamed when
everything is on disk. DeepSpeed's own `latest` file is neither atomic nor written last, so it is not used.
"""

from __future__ import annotations

import copyreg
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from simvtp_ds.engine.checkpoint import PARTIAL, RECORD, Position, publish, record_of, retired
from simvtp_ds.engine.cpu_adam import replay_bias_correction
from simvtp_ds.engine.failures import TrainingError
from simvtp_ds.engine.ranks import Control, Rank
from simvtp_ds.files import replacing, sha256, sync_folder

WEIGHTS = "weights.safetensors"
AVERAGE = "ema.safetensors"
OF_A_GROUP = ("weight_decay", "lr_scale")  # what parameter groups differ in (model/params.py)


def fp32_weights(engine: Any) -> dict[str, torch.Tensor]:
    """The whole model in fp32 on the CPU, from the optimizer's master copy; all ranks must call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        weights[name.removeprefix("model.")] = (parameter if full is None else full).detach().float().cpu().contiguous()
    return weights


def read_weights(checkpoint: Path, name: str) -> tuple[dict[str, torch.Tensor], str]:
    """A file of weights of a checkpoint and its sha256.

    Raises:
        ValueError: it is missing, or not what was written.
    """
    path, files = checkpoint / name, record_of(checkpoint)["files"]
    if name not in files:
        raise ValueError(f"{checkpoint} has no {name}, but {', '.join(sorted(files))}: name another checkpoint")
    if sha256(path) != files[name]["sha256"]:
        raise ValueError(f"{path} is damaged: its sha256 is not the one that was written; name another checkpoint")
    try:
        return load_file(path), files[name]["sha256"]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): name another checkpoint") from error


@contextmanager
def _collect_write_errors(engine: Any, errors: list[str]) -> Iterator[None]:
    """Let DeepSpeed's save go on after a failed write: its barriers wait for every rank, also for one that raised.

    The scripts that it copies beside the checkpoints are left out: a full disk would stop rank 0 there, alone, and
    weights.safetensors holds what they would extract.
    """
    engine._copy_recovery_script = lambda _: None
    backend = engine.checkpoint_engine
    write = backend.save

    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return write(*args, **kwargs)
        except (OSError, RuntimeError) as error:
            errors.append(str(error).splitlines()[0])

    backend.save = guarded
    try:
        yield
    finally:
        backend.save = write
        del engine._copy_recovery_script


def write_stages_by_value() -> None:
    """Have pickles give DeepSpeed's ZeRO stage by its value: Python 3.11.2 (Debian 12) writes members of an enumeration
    as a call of getattr, which `resume.check_pickles` refuses as it may reach anything."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))


def save(
    engine: Any,
    run: Path,
    position: Position,
    rank: Rank,
    control: Control,
    keep: int,
    average: Callable[[], dict[str, torch.Tensor]] | None = None,
) -> Path:
    """Write a checkpoint, all ranks together, then delete all but the newest `keep`.

    `average`, if given, gives the moving average of the weights; all ranks call it.

    Raises:
        TrainingError: some rank could not write (disk full, no permission); nothing half-written stays behind and
            the earlier checkpoints are as they were.
    """
    root = run / "checkpoints"
    final = root / f"step_{position.step:08d}"
    partial = root / f"{PARTIAL}{final.name}"
    errors: list[str] = []

    def together() -> None:
        """Go on only if no rank has met an error."""
        failed = [f"rank {r}: {found[0]}" for r, found in enumerate(control.gather(errors)) if found]
        if failed:
            free = shutil.disk_usage(run).free / 2**20  # torch's own words seldom say that the disk is full
            if rank.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(
                f"the checkpoint of step {position.step} could not be written to {root} ({failed[0]}; "
                f"{free:.0f} MiB free there); earlier ones are intact. Make room, then go on with --resume auto"
            )

    if rank.is_main:
        with _noting(errors):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
    together()
    for name, gather in ((WEIGHTS, functools.partial(fp32_weights, engine)), (AVERAGE, average)):
        if gather is None:
            continue
        weights = gather()
        if rank.is_main:
            with _noting(errors):
                save_file(weights, partial / name, metadata={"format": "pt"})
        del weights
    write_stages_by_value()
    with _collect_write_errors(engine, errors):
        engine.save_checkpoint(str(root), tag=partial.name, save_latest=False)
    together()
    names = control.gather(sorted(p.name for p in partial.iterdir()))[0]
    hashes = {}
    with _noting(errors):
        for name in names[rank.rank :: rank.world_size]:
            with (partial / name).open("rb") as file:
                os.fsync(file.fileno())
                hashes[name] = {"sha256": sha256(partial / name), "bytes": os.fstat(file.fileno()).st_size}
    files = {name: described for share in control.gather(hashes) for name, described in share.items()}
    if rank.is_main:
        with _noting(errors):
            record = {"position": asdict(position), "files": dict(sorted(files.items()))}
            with replacing(partial / RECORD) as temporary:
                temporary.write_text(json.dumps(record, indent=1))
            publish(partial, final)
            sync_folder(root)
    together()
    if rank.is_main:
        for doomed in retired(run, keep):
            shutil.rmtree(doomed, ignore_errors=True)
    return final


@contextmanager
def _noting(errors: list[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever it is, the other ranks must hear of it before this one stops
        errors.append(str(error).splitlines()[0] if str(error) else type(error).__name__)


def load(engine: Any, folder: Path) -> None:
    """Put model, optimizer and loss scale of a checkpoint into the engine; all ranks must call it.

    Raises:
        TrainingError: DeepSpeed found nothing to load.
    """
    # From the universal format ZeRO-3 gives the first group's weight decay to all of them.
    kept = [{name: group[name] for name in OF_A_GROUP if name in group} for group in engine.optimizer.param_groups]
    path, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    if path is None:
        raise TrainingError(f"DeepSpeed could not load {folder}, though every file in it is intact")
    for group, values in zip(engine.optimizer.param_groups, kept, strict=True):
        group.update(values)
    replay_bias_correction(engine.optimizer)
