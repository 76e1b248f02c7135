"""What a run checks before it goes on from a checkpoint, beside the checkpoint's own record."""

from __future__ import annotations

import copyreg
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

from simvtp_ds.config import PretrainConfig
from simvtp_ds.config_files import save_config
from simvtp_ds.data.text import Tokenizer, train_wordpiece
from simvtp_ds.engine.resume import RefusedError, check_inputs, check_pickles
from simvtp_ds.engine.saving import write_stages_by_value
from simvtp_ds.finetune_config import FinetuneConfig


def tokenizer_of(caption: str) -> Tokenizer:
    return train_wordpiece([caption], 100)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a run that started from runs/a."""
    folder = tmp_path / "checkpoints" / "step_00000001"
    folder.mkdir(parents=True)
    (tmp_path / "tokenizer").mkdir()
    tokenizer_of("abc").save(tmp_path / "tokenizer")
    save_config(FinetuneConfig(init="runs/a"), tmp_path / "config.yaml")
    return folder


def test_the_same_run_goes_on(checkpoint: Path) -> None:
    check_inputs(checkpoint, FinetuneConfig(init="runs/../runs/a"), tokenizer_of("abc"))
    save_config(PretrainConfig(), checkpoint.parent.parent / "config.yaml")
    check_inputs(checkpoint, PretrainConfig(), tokenizer_of("abc"))


def test_other_words_are_refused_though_there_are_as_many(checkpoint: Path) -> None:
    assert tokenizer_of("abd").vocab_size == tokenizer_of("abc").vocab_size
    with pytest.raises(RefusedError, match="other words"):
        check_inputs(checkpoint, FinetuneConfig(init="runs/a"), tokenizer_of("abd"))


@pytest.mark.parametrize("field", ["init", "init_words"])
def test_other_weights_to_start_pretraining_from_are_refused(checkpoint: Path, field: str) -> None:
    started = [replace(PretrainConfig(), **{field: name}) for name in ("a", "b")]
    save_config(started[0], checkpoint.parent.parent / "config.yaml")
    check_inputs(checkpoint, started[0], tokenizer_of("abc"))
    with pytest.raises(RefusedError, match=f"{field} was a, is b. Start with the same --{field}"):
        check_inputs(checkpoint, started[1], tokenizer_of("abc"))


@pytest.mark.parametrize("init", ["runs/b", ""])
def test_another_model_to_start_from_is_refused(checkpoint: Path, init: str) -> None:
    with pytest.raises(RefusedError, match="init was runs/a"):
        check_inputs(checkpoint, FinetuneConfig(init=init), tokenizer_of("abc"))


def test_the_zero_stage_is_written_without_getattr_whichever_python_writes_it(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(copyreg.dispatch_table, ZeroStageEnum, raising=False)
    as_in_3_11_2 = lambda stage, _protocol: (getattr, (ZeroStageEnum, stage.name))  # noqa: E731
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", as_in_3_11_2)
    torch.save({"zero_stage": ZeroStageEnum.gradients}, checkpoint / "ours.pt")
    with pytest.raises(RefusedError, match=r"would load builtins\.getattr"):
        check_pickles(checkpoint)
    write_stages_by_value()
    torch.save({"zero_stage": ZeroStageEnum.gradients}, checkpoint / "ours.pt")
    check_pickles(checkpoint)


class Code:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_that_would_run_code_are_refused_before_anything_is_unpickled(checkpoint: Path, tmp_path: Path) -> None:
    scalers = [LossScaler(1), DynamicLossScaler(65536, 1000, 1, 1, False, dtype=torch.float16)]
    torch.save({"scale": scalers, "weights": torch.ones(2)}, checkpoint / "ours.pt")
    check_pickles(checkpoint)
    torch.save({"weights": torch.ones(2), "step": Code(tmp_path / "made")}, checkpoint / "theirs.pt")
    with pytest.raises(RefusedError, match=r"theirs\.pt would load builtins\.getattr, pathlib"):
        check_pickles(checkpoint)
    (checkpoint / "theirs.pt").write_bytes(b"no zip")
    with pytest.raises(RefusedError, match=r"theirs\.pt is no file of torch\.save"):
        check_pickles(checkpoint)
    assert not (tmp_path / "made").exists()
