"""Runs that go on by another number of ranks, for every stage and dtype, and for fine-tuning with an average."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.integration.conftest import Launcher, corpus, deepspeed_json, launcher, losses

__all__ = ["corpus", "launcher"]
pytestmark = pytest.mark.slow
CLIPS = 12  # of a step


def largest_difference(run: Path, other: Path) -> float:
    """Of any loss of any step."""
    ours, theirs = losses(run), losses(other)
    assert sorted(ours) == sorted(theirs)
    return max(abs(a - b) for step in ours for a, b in zip(ours[step], theirs[step], strict=True))


class Steps:
    """Nine steps, checkpoints after 3, 6 and 9."""

    def __init__(self, launcher: Launcher, name: str, config: dict[str, Any], driver: str, **fields: Any) -> None:
        self.launcher, self.name, self.config, self.driver = launcher, name, config, driver
        self.fields = {"schedule__max_steps": 9, "run__save_every": 3, **fields}

    def by(self, ranks: int, start: Path | None = None, after: int = 0) -> Path:
        """The run's folder; `start`: go on with that run from its checkpoint after step `after`."""
        run = self.launcher.folder / f"{self.name}_{start.name if start else 'whole'}_{ranks}"
        if start is not None:
            shutil.copytree(start, run)
            for step in range(after + 3, 10, 3):
                shutil.rmtree(run / f"checkpoints/step_{step:08d}")
        accumulation = CLIPS // 2 // ranks
        config = {**self.config, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": accumulation}
        output = self.launcher.torchrun(run.name, config, ranks=ranks, driver=self.driver, **self.fields).succeed()
        assert ("resumed from" in output) == (start is not None)
        return run


@pytest.mark.parametrize(
    ("stage", "dtype", "tolerance"),
    [(0, "fp32", 1e-5), (1, "fp32", 1e-5), (2, "fp32", 1e-5), (3, "fp32", 1e-5), (1, "bf16", 5e-2), (2, "bf16", 5e-2)],
)
def test_two_ranks_then_one_or_three_and_one_then_two_or_three(
    launcher: Launcher, stage: int, dtype: str, tolerance: float
) -> None:
    config = deepspeed_json(stage=stage) | ({dtype: {"enabled": True}} if dtype != "fp32" else {})
    steps = Steps(launcher, f"{stage}_{dtype}", config, "launch/pretrain.py", model__text_dropout=0.0)
    whole = steps.by(2)
    one = steps.by(1, whole, after=3)
    three = steps.by(3, one, after=6)
    two = steps.by(2, one, after=6)
    more = steps.by(3, whole, after=3)
    for run in (one, three, two, more):
        difference = largest_difference(run, whole)
        print(f"{run.name}: {difference:.1e}")
        assert difference < tolerance, run.name


def test_fine_tuning_goes_on_by_another_number_of_ranks_with_its_average(launcher: Launcher) -> None:
    steps = Steps(launcher, "tuned", deepspeed_json(), "launch/finetune.py", ema_decay=0.5)
    whole = steps.by(2)
    one = steps.by(1, whole, after=3)
    assert largest_difference(one, whole) < 1e-5
    ours, theirs = (load_file(run / "checkpoints/step_00000009/ema.safetensors") for run in (one, whole))
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-5
