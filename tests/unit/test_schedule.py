"""The learning-rate schedule against torch's own schedulers and the paper's numbers."""

from __future__ import annotations

import pytest
import torch

from simvtp_ds.config import ScheduleConfig
from simvtp_ds.engine.schedule import Schedule, build_schedule, set_learning_rate


def test_equals_torchs_linear_and_cosine_schedulers_chained() -> None:
    total, warmup, start, floor = 50, 10, 0.1, 0.05
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, start, 1.0, warmup)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, eta_min=floor)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [linear, cosine], [warmup])
    ours = Schedule(total, warmup, start, floor)
    for step in range(total):
        assert ours.multiplier(step) == pytest.approx(both.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        both.step()


def test_default_multipliers_are_the_papers_rates_over_its_peak() -> None:
    schedule = build_schedule(ScheduleConfig(), steps_per_epoch=10)
    assert schedule.total_steps == 2000
    assert schedule.warmup_steps == 400
    assert 1.5e-4 * schedule.multiplier(0) == pytest.approx(1e-6)
    assert 1.5e-4 * schedule.multiplier(400) == pytest.approx(1.5e-4)
    assert 1.5e-4 * schedule.multiplier(2000) == pytest.approx(1e-5)


def test_max_steps_shortens_the_run_and_warmup_never_outlasts_it() -> None:
    schedule = build_schedule(ScheduleConfig(epochs=10, warmup_epochs=5, max_steps=20), steps_per_epoch=100)
    assert (schedule.total_steps, schedule.warmup_steps) == (20, 20)


@pytest.mark.parametrize("wrong", [{"epochs": 0.0}, {"floor": 2.0}, {"warmup_start": -1.0}])
def test_impossible_schedules_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"schedule\."):
        build_schedule(ScheduleConfig(**wrong), steps_per_epoch=10)


def test_layer_decay_stays_a_factor_of_the_rate() -> None:
    groups = [{"lr": 0.0}, {"lr": 0.0, "lr_scale": 0.5}]
    set_learning_rate(groups, peak=2.0, multiplier=0.25)
    assert [g["lr"] for g in groups] == [0.5, 0.25]
