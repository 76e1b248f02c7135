"""Which checkpoint is chosen when some are damaged. Writing and loading are tested with the real engine."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from simvtp_ds.engine.checkpoint import (
    RECORD,
    Position,
    newest_valid,
    record_of,
    sha256,
    steps_of,
)
from simvtp_ds.engine.resume import RefusedError, check_position

POSITION = Position(10, 2, 2, "fp32", 64, 0, "abc", "{}")


def make(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "a.pt").write_bytes(b"a" * 1000)
    files = {"a.pt": {"sha256": sha256(folder / "a.pt"), "bytes": 1000}}
    (folder / RECORD).write_text(json.dumps({"position": asdict(replace(POSITION, step=step)), "files": files}))
    return folder


def truncate(folder: Path) -> None:
    (folder / "a.pt").write_bytes(b"a" * 999)


def flip_a_bit(folder: Path) -> None:
    (folder / "a.pt").write_bytes(b"a" * 999 + b"b")


def remove_a_shard(folder: Path) -> None:
    (folder / "a.pt").unlink()


def remove_the_record(folder: Path) -> None:
    (folder / RECORD).unlink()


def tear_the_record(folder: Path) -> None:
    (folder / RECORD).write_text((folder / RECORD).read_text()[:30])


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove_a_shard, remove_the_record, tear_the_record])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage) -> None:
    good, bad = make(tmp_path, 10), make(tmp_path, 20)
    assert newest_valid(tmp_path) == bad
    damage(bad)
    assert newest_valid(tmp_path) == good
    damage_all = make(tmp_path, 30)
    damage(damage_all)
    assert newest_valid(tmp_path) == good


def test_folders_that_are_being_written_are_not_checkpoints(tmp_path: Path) -> None:
    make(tmp_path, 10).rename(tmp_path / "checkpoints" / ".partial-step_00000010")
    assert steps_of(tmp_path) == []
    assert newest_valid(tmp_path) is None


def test_newest_means_the_highest_step_not_the_last_in_the_alphabet(tmp_path: Path) -> None:
    make(tmp_path, 99_999_999)
    late = make(tmp_path, 100_000_000)
    assert newest_valid(tmp_path) == late


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path, 10)
    remove_a_shard(folder)
    with pytest.raises(ValueError, match=r"a\.pt is missing"):
        record_of(folder)


def test_going_on_with_other_settings_is_refused_with_both_values(tmp_path: Path) -> None:
    folder = make(tmp_path, 10)
    assert check_position(folder, replace(POSITION, step=0)) == POSITION
    with pytest.raises(RefusedError, match="seed was 0, is 1"):
        check_position(folder, replace(POSITION, seed=1))


def test_another_number_of_ranks_may_go_on_if_the_global_batch_stays(tmp_path: Path) -> None:
    folder = make(tmp_path, 10)
    assert check_position(folder, replace(POSITION, world_size=4)).world_size == 2
    with pytest.raises(RefusedError, match=r"global_batch was 64, is 128 .*2 ranks, now there are 4.*accumulation"):
        check_position(folder, replace(POSITION, world_size=4, global_batch=128))
