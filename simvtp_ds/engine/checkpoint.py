"""What a checkpoint is and which one is good; engine/saving.py writes and loads them. Needs no torch.

RUN/checkpoints/step_00001000/
    checkpoint.json           what it is, and the sha256 of every file; written last
    weights.safetensors       the model in fp32, names as in SimVTP.state_dict()
    *_model_states.pt ...     DeepSpeed's own files: model, optimizer, loss scale
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simvtp_ds.files import sha256

RECORD = "checkpoint.json"
PARTIAL = ".partial-"  # in front of the name of a folder that is being written or deleted


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


def hash_errors(folder: Path, record: Mapping[str, Any], share: int = 0, of: int = 1) -> list[str]:
    """What is damaged among every `of`-th file of a checkpoint, from file `share` on."""
    names = sorted(record["files"])[share::of]
    wrong = [n for n in names if sha256(folder / n) != record["files"][n]["sha256"]]
    return [f"{folder / name} is damaged: its sha256 is not the one that was written" for name in wrong]


def publish(partial: Path, final: Path) -> None:
    """Give a complete checkpoint its name."""
    if final.exists():  # a damaged one of the same step, passed over when the run was resumed
        shutil.rmtree(final)
    partial.rename(final)


def retired(run: Path, keep: int) -> Iterator[Path]:
    """All checkpoints of a run but its newest `keep`, one by one, to be deleted.

    Renamed first: a folder deleted by half must not look like a checkpoint.
    """
    for old in steps_of(run)[keep:]:
        doomed = old.with_name(f"{PARTIAL}{old.name}")
        old.rename(doomed)
        yield doomed


def newest_valid(run: str | Path) -> Path | None:
    """The newest complete and undamaged checkpoint of a run, checked by this process alone."""
    for folder in steps_of(Path(run)):
        try:
            if not hash_errors(folder, record_of(folder)):
                return folder
        except (ValueError, OSError):
            continue
    return None


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """The run folder and the checkpoint that `path` means: a run (its newest undamaged checkpoint) or a checkpoint.

    Raises:
        ValueError: it is neither, the checkpoint is not complete, or the run has no valid one.
    """
    if (path / "config.yaml").is_file():
        newest = newest_valid(path)
        if newest is None:
            raise ValueError(f"{path} has no complete checkpoint: let the run that writes there get to its first one")
        return path, newest
    if path.resolve().parent.name == "checkpoints":
        record_of(path)
        return path.resolve().parent.parent, path
    raise ValueError(
        f"{path} is neither a run (a folder with config.yaml) nor a checkpoint (RUN/checkpoints/step_N); of other "
        "weights launch/convert.py makes a folder that loads"
    )
