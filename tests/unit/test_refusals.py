"""Files that must not be read, or cannot be: one sentence each, and nothing of them runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum
from safetensors.torch import save_file
from saved_runs import pretraining_run
from tiny import tiny_model

from simvtp_ds.engine.convert import convert
from simvtp_ds.interop.autodetect import read_source
from simvtp_ds.interop.exported import CONFIG
from simvtp_ds.interop.zero import allowed_in_shards


class Malicious:
    """Makes a folder when it is unpickled by a loader that lets it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def refused(path: Path, folder: Path) -> str:
    """The sentence with which converting `path` is refused, with nothing left behind."""
    with pytest.raises(ValueError) as raised:
        convert(str(path), folder / "out", "simvtp-ds", lambda line: None)
    assert not (folder / "out").exists()
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, archive: bool) -> None:
    path, victim = tmp_path / "evil.pth", tmp_path / "ran"
    held = {"model": tiny_model().state_dict(), "extra": Malicious(victim)}
    torch.save(held, path, _use_new_zipfile_serialization=archive)
    assert "wants posix.mkdir called while it is read" in refused(path, tmp_path)
    path.write_bytes(pickle.dumps(Malicious(victim), protocol=2))
    assert "wants posix.mkdir called" in refused(path, tmp_path)
    path.write_bytes(pickle.dumps(Malicious(victim)))
    assert "is not a safetensors file or a whole PyTorch checkpoint" in refused(path, tmp_path)
    assert not victim.exists()


def test_a_shard_of_deepspeed_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    folder, victim = tmp_path / "tag", tmp_path / "ran"
    folder.mkdir()
    state = {f"model.{name}": value for name, value in tiny_model().state_dict().items()}
    torch.save({"module": state, "client": Malicious(victim)}, folder / "mp_rank_00_model_states.pt")
    assert "wants posix.mkdir called" in refused(folder, tmp_path)  # stage 0
    torch.save({"optimizer_state_dict": {}}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert "wants posix.mkdir called" in refused(folder, tmp_path)
    assert not victim.exists()


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_file(tiny_model().state_dict(), whole)
    for size in (0, 5, 200, whole.stat().st_size - 1):
        cut.write_bytes(whole.read_bytes()[:size])
        assert "is not a whole safetensors file" in refused(cut, tmp_path)
    (tmp_path / "claims.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{" + bytes(100))
    assert "is not a whole safetensors file" in refused(tmp_path / "claims.safetensors", tmp_path)


def test_archives_and_tensors_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(1 << 26))
        archive.writestr("bomb/version", "3")
    assert bomb.stat().st_size < 1 << 17
    assert f"unpacks to {(1 << 26) + 1}" in refused(bomb, tmp_path)

    claim = tmp_path / "claim.pth"
    torch.save({"model": {"encoder.norm.weight": torch.zeros(1).expand(1 << 40)}}, claim)
    assert "encoder.norm.weight claims 4398046511104 bytes in a file of" in refused(claim, tmp_path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}, path)
    assert "is of another architecture, with names such as conv1.weight, fc.bias" in refused(path, tmp_path)
    folder = tmp_path / "vit"
    folder.mkdir()
    (folder / CONFIG).write_text('{"model_type": "vit"}')
    assert "its config.json says 'vit', not videomae or bert" in refused(folder, tmp_path)


def test_what_holds_no_weights_is_refused(tmp_path: Path) -> None:
    noise, pointer, text = tmp_path / "noise.pth", tmp_path / "pointer.safetensors", tmp_path / "list.pth"
    for line in ("epoch 3\n", "import sys\n", "import torch\n"):  # whatever the unpickler stumbles over, it is told
        text.write_text(line)
        told = refused(text, tmp_path)
        assert "whole PyTorch checkpoint (" in told
        assert "()" not in told
    noise.write_bytes(bytes(range(256)) * 4)
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    torch.save({"epoch": 3}, text)
    assert "is not a safetensors file or a whole PyTorch checkpoint" in refused(noise, tmp_path)
    assert "is a Git LFS pointer" in refused(pointer, tmp_path)
    assert "holds no state dict, but keys such as 'epoch'" in refused(text, tmp_path)
    torch.save([torch.zeros(2)], text)
    assert "holds no state dict" in refused(text, tmp_path)
    (tmp_path / "empty").mkdir()
    assert "is neither a run" in refused(tmp_path / "empty", tmp_path)
    assert "is neither a run" in refused(tmp_path / "nothing.pth", tmp_path)


def test_a_damaged_export_is_refused(tmp_path: Path) -> None:
    pretraining_run(tmp_path / "run")
    for name, old, new, message in (
        ("sizes", '"width": 24', '"width": 48', "does not fit the weights beside it: model.width is 24, not 48"),
        ("version", '"version": 1', '"version": 9', "version 9 is newer"),
        ("field", '"temperature"', '"temperament"', "is damaged ('temperature')"),
        ("json", "{", "", "cannot be read as JSON"),
    ):
        folder = tmp_path / name
        convert(str(tmp_path / "run"), folder, "simvtp-ds", lambda line: None)
        text = (folder / CONFIG).read_text()
        assert old in text
        (folder / CONFIG).write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError) as raised:
            read_source(folder)
        assert message in str(raised.value)


class Reached:
    """Pickled as a call of getattr."""

    def __init__(self, of: object, name: str) -> None:
        self.of, self.name = of, name

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.of, self.name)


@pytest.mark.parametrize(("name", "allowed"), [("gradients", True), ("__class__", False), ("mro", False)])
def test_getattr_in_a_shard_reaches_the_zero_stages_and_nothing_else(tmp_path: Path, name: str, allowed: bool) -> None:
    path = tmp_path / "shard.pt"
    torch.save({"zero_stage": Reached(ZeroStageEnum, name)}, path)
    with torch.serialization.safe_globals(allowed_in_shards()):
        if allowed:
            assert torch.load(path, weights_only=True) == {"zero_stage": ZeroStageEnum.gradients}
            return
        with pytest.raises(pickle.UnpicklingError, match="wants getattr called"):
            torch.load(path, weights_only=True)
