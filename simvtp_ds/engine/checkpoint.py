"""Checkpoints that are complete or do not exist.

    RUN/checkpoints/step_00001000/
        checkpoint.json           what it is, and the sha256 of every file; written last
        weights.safetensors       the model in fp32, names as in SimVTP.state_dict()
        *_model_states.pt ...     DeepSpeed's own files: model, optimizer, loss scale

A checkpoint is written into a folder whose name starts with `.partial`, hashed by all ranks together, and renamed
when everything is on disk. DeepSpeed's own `latest` file is neither atomic nor written last, so it is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from simvtp_ds.engine.failures import TrainingError
from simvtp_ds.engine.ranks import Control, Rank

PARTIAL = ".partial-"
RECORD = "checkpoint.json"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Position:
    """Where a run is, and what must not change when it goes on: together they decide every later batch."""

    step: int
    world_size: int
    zero_stage: int
    dtype: str
    global_batch: int
    seed: int
    manifest: str  # fingerprint
    model: str  # the model's configuration, as one string


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def record_of(folder: Path) -> dict[str, Any]:
    """The checkpoint's own description.

    Raises:
        ValueError: the folder is not a complete checkpoint.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text())
        files, _ = record["files"], Position(**record["position"])
    except FileNotFoundError:
        raise ValueError(f"{folder} is not a complete checkpoint: it has no {RECORD}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): use another checkpoint") from error
    for name, described in files.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{folder} is not a complete checkpoint: {name} is missing")
        if file.stat().st_size != described["bytes"]:
            raise ValueError(f"{file} has {file.stat().st_size} bytes, {described['bytes']} were written: damaged")
    return record


def steps_of(run: Path) -> list[Path]:
    """Folders of the checkpoints of a run, newest first, valid or not."""
    folders = [p for p in (run / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d{8,}", p.name)]
    return sorted(folders, key=lambda p: int(p.name.removeprefix("step_")), reverse=True)


def _hash_errors(folder: Path, record: Mapping[str, Any], share: int = 0, of: int = 1) -> list[str]:
    names = sorted(record["files"])[share::of]
    wrong = [n for n in names if sha256(folder / n) != record["files"][n]["sha256"]]
    return [f"{folder / name} is damaged: its sha256 is not the one that was written" for name in wrong]


def newest_valid(run: str | Path) -> Path | None:
    """The newest complete and undamaged checkpoint of a run, checked by this process alone."""
    for folder in steps_of(Path(run)):
        try:
            if not _hash_errors(folder, record_of(folder)):
                return folder
        except (ValueError, OSError):
            continue
    return None


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
            errors = _hash_errors(folder, record_of(folder), rank.rank, rank.world_size)
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


def check_position(folder: Path, now: Position) -> int:
    """The step to go on from.

    Raises:
        TrainingError: going on would not be the same run: another world size, global batch, seed, manifest or model.
    """
    then = Position(**record_of(folder)["position"])
    differing = [n for n in asdict(now) if n != "step" and getattr(now, n) != getattr(then, n)]
    if differing:
        pairs = ", ".join(f"{n} was {getattr(then, n)}, is {getattr(now, n)}" for n in differing)
        raise TrainingError(
            f"cannot go on from {folder}: {pairs}. Start with the same settings, or name another --run.dir"
        )
    return then.step


def fp32_weights(engine: Any) -> dict[str, torch.Tensor]:
    """The whole model in fp32 on the CPU, from the optimizer's master copy; all ranks must call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        weights[name.removeprefix("model.")] = (parameter if full is None else full).detach().float().cpu().contiguous()
    return weights


@contextmanager
def _collect_write_errors(engine: Any, errors: list[str]) -> Iterator[None]:
    """Let DeepSpeed's save go on after a failed write: its barriers wait for every rank, also for one that raised."""
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


def save(engine: Any, run: Path, position: Position, rank: Rank, control: Control, keep: int) -> Path:
    """Write a checkpoint, all ranks together, then delete all but the newest `keep`.

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
            if rank.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(
                f"the checkpoint of step {position.step} could not be written to {root} ({failed[0]}); earlier ones "
                "are intact. Make room, then go on with --resume auto"
            )

    if rank.is_main:
        with _noting(errors):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
    together()
    weights = fp32_weights(engine)
    if rank.is_main:
        with _noting(errors):
            save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
    del weights
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
            _write_durably(partial / RECORD, json.dumps(record, indent=1))
            if final.exists():  # a damaged one of the same step, passed over when the run was resumed
                shutil.rmtree(final)
            partial.rename(final)
            _sync_folder(root)
    together()
    if rank.is_main:
        for old in steps_of(run)[keep:]:
            # Renamed first: a folder deleted by half must not look like a checkpoint.
            doomed = root / f"{PARTIAL}{old.name}"
            old.rename(doomed)
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
    path, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    if path is None:
        raise TrainingError(f"DeepSpeed could not load {folder}, though every file in it is intact")
