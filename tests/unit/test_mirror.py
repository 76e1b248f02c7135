"""The second location of the checkpoints: whole copies only, never another run's, and no trouble for the run."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event

import pytest
from test_checkpoint import make

from simvtp_ds.config import PretrainConfig, RunConfig
from simvtp_ds.config_files import save_config
from simvtp_ds.engine import mirror as module
from simvtp_ds.engine.checkpoint import find_checkpoint, newest_valid, steps_of
from simvtp_ds.engine.mirror import Mirror
from simvtp_ds.engine.ranks import Rank
from simvtp_ds.engine.resume import RefusedError, find_start


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    save_config(PretrainConfig(run=RunConfig(dir=str(folder))), folder / "config.yaml")
    return folder


class Alone:
    """The agreement of one rank with itself."""

    def gather(self, value):
        return [value]


def start(run: Path, second: Path) -> Path | None:
    warned: list[str] = []
    return find_start(run, second, "auto", Rank(0, 0, 1, 1), Alone(), warned.append)  # pyright: ignore[reportArgumentType]


def test_checkpoints_are_copied_whole_and_the_newest_are_kept(run: Path, tmp_path: Path) -> None:
    second = Mirror(run, tmp_path / "second", keep=2)
    for step in (1, 2, 3):
        second.copy(make(run, step))
        assert second.close(10) == []
    assert [folder.name for folder in steps_of(second.folder)] == ["step_00000003", "step_00000002"]
    assert newest_valid(second.folder) == second.folder / "checkpoints/step_00000003"
    assert find_checkpoint(second.folder)[0] == second.folder  # a run's folder, to evaluate from
    assert sorted(p.name for p in (second.folder / "checkpoints").iterdir()) == ["step_00000002", "step_00000003"]


def test_a_run_goes_on_from_there_only_where_its_own_are_gone_or_older(run: Path, tmp_path: Path) -> None:
    second = Mirror(run, tmp_path / "second", keep=3)
    for step in (1, 2):
        second.copy(make(run, step))
        second.close(10)
    own, copied = run / "checkpoints", second.folder / "checkpoints"
    assert start(run, second.folder) == own / "step_00000002"
    (own / "step_00000002" / "a.pt").write_bytes(b"b" * 1000)
    assert start(run, second.folder) == copied / "step_00000002"
    own.rename(tmp_path / "gone")
    assert start(run, second.folder) == copied / "step_00000002"


def test_a_checkpoint_that_is_damaged_on_the_way_is_not_kept_and_told(run: Path, tmp_path: Path) -> None:
    second = Mirror(run, tmp_path / "second", keep=2)
    damaged = make(run, 1)
    (damaged / "a.pt").write_bytes(b"b" * 1000)
    second.copy(damaged)
    assert "a.pt is damaged" in second.close(10)[0]
    assert list((second.folder / "checkpoints").iterdir()) == []


def test_a_slow_place_gets_the_last_checkpoint_and_keeps_nobody_waiting(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, copytree = Event(), module.shutil.copytree
    monkeypatch.setattr(module.shutil, "copytree", lambda *a, **k: (go.wait(10), copytree(*a, **k)))
    second = Mirror(run, tmp_path / "second", keep=3)
    for step in (1, 2, 3):
        second.copy(make(run, step))
    go.set()
    assert second.close(10) == []
    assert [folder.name for folder in steps_of(second.folder)] == ["step_00000003", "step_00000001"]


def test_a_place_that_is_not_this_runs_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_config(PretrainConfig(run=RunConfig(dir="runs/another")), other / "config.yaml")
    with pytest.raises(RefusedError, match="has the checkpoints of runs/another"):
        Mirror(run, other, keep=1)
    with pytest.raises(RefusedError, match=r"run\.dir itself"):
        Mirror(run, run, keep=1)
    (tmp_path / "file").write_text(json.dumps("no folder"))
    with pytest.raises(RefusedError, match="cannot be used"):
        Mirror(run, tmp_path / "file", keep=1)
