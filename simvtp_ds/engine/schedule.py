"""The learning rate as a pure function of the step: a multiplier of the peak that the DeepSpeed JSON names.

DeepSpeed's own schedulers flatten the learning rates of parameter groups and do not advance on skipped steps;
ours depends on the position in the run alone, so a resume is a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from simvtp_ds.config import ScheduleConfig


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine, both per step (MAE's and VideoMAE's recipe)."""

    total_steps: int
    warmup_steps: int
    warmup_start: float
    floor: float

    def multiplier(self, step: int) -> float:
        """Multiplier of the peak learning rate for global step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.warmup_start + (1.0 - self.warmup_start) * step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def build_schedule(config: ScheduleConfig, steps_per_epoch: int) -> Schedule:
    """Turn epochs into steps.

    Raises:
        ValueError: the run would have no step, or a multiplier is outside [0, 1].
    """
    for name in ("warmup_start", "floor"):
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise ValueError(f"schedule.{name} is {getattr(config, name)}; it is a share of the peak, 0 to 1")
    if config.max_steps < 0:
        raise ValueError(f"schedule.max_steps is {config.max_steps}; give a number of steps, or 0 for schedule.epochs")
    total = config.max_steps or round(config.epochs * steps_per_epoch)
    if total < 1:
        raise ValueError(f"schedule.epochs {config.epochs} x {steps_per_epoch} steps an epoch is no step at all")
    return Schedule(
        total_steps=total,
        warmup_steps=min(total, round(config.warmup_epochs * steps_per_epoch)),
        warmup_start=config.warmup_start,
        floor=config.floor,
    )


def set_learning_rate(param_groups: Iterable[dict], peak: float, multiplier: float) -> None:
    """Set every group's rate; a group's own `lr_scale` (layer decay) stays a factor."""
    for group in param_groups:
        group["lr"] = peak * multiplier * group.get("lr_scale", 1.0)
