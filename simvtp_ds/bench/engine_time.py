"""A trainer that times itself: where a step's time goes, and what the engine costs on top of the bare step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from simvtp_ds.bench.timing import clock
from simvtp_ds.bench.variants import Step
from simvtp_ds.engine.train import Trainer
from simvtp_ds.types import AnyLosses

ENGINE_PARTS = ("forward", "backward", "step")


@dataclass
class StepTime:
    """Seconds on the wall of one step of the trainer and of its parts.

    Attributes:
        busy: Seconds by `timing.clock` that are no wait for data: what `bare` compares with.
        bare: The same of this step without DeepSpeed, 0 where none was made.
    """

    total: float = 0.0
    data_wait: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    step: float = 0.0  # gradients over ranks, optimizer, weights back
    busy: float = 0.0
    bare: float = 0.0

    @property
    def rest(self) -> float:
        """Copies to the device, meters, log lines, agreements between ranks."""
        return self.total - self.data_wait - self.forward - self.backward - self.step


@dataclass(kw_only=True)
class TimedTrainer(Trainer):
    """The training loop as it is, with a clock. A checkpoint is not written: it has nothing to do with a step.

    Args:
        bare: Makes the step without DeepSpeed, given the engine's dtype; called once.
        alone: Steps, from the first, after which no bare step is made: those show the loader's real wait. Between the
            later steps the loader has the time of a bare step to prepare batches.
        times: One entry a step is added here.
    """

    bare: Callable[[], Step]
    alone: int
    times: list[StepTime] = field(default_factory=list)
    _bare: Step = field(init=False)
    _now: StepTime = field(init=False, default_factory=StepTime)
    _resumed: float = field(init=False, default=0.0)
    _resumed_busy: float = field(init=False, default=0.0)

    def train(self) -> str:
        """The same loop."""
        self._bare = self.bare()
        for part in ENGINE_PARTS:
            setattr(self.engine, part, self._timed(part, getattr(self.engine, part)))
        self._resume()
        return super().train()

    def train_step(self, step: int, batches: Iterator[Any]) -> list[AnyLosses]:
        """One global step, and perhaps a bare one after it."""
        waited = self.loader.wait_seconds
        losses = super().train_step(step, batches)
        self._now.data_wait = self.loader.wait_seconds - waited
        return losses

    def micro_step(self, step: int, micro: int, *inputs: Any) -> AnyLosses:
        """The same, and the batch is remembered for the bare step."""
        self._bare.batch = inputs[0]
        return super().micro_step(step, micro, *inputs)

    def after_step(self, done: int) -> None:
        """The step is done and logged: note its time, and make the bare step."""
        self._now.busy = clock(self.engine.device) - self._resumed_busy
        self._now.total = time.perf_counter() - self._resumed
        if self.engine.device.type == "cuda":  # a wait is not seen by the clock of a CPU
            self._now.busy -= self._now.data_wait
        if len(self.times) >= self.alone:
            self._now.bare = self._bare().seconds
        self.times.append(self._now)
        self._now = StepTime()
        self._resume()

    def save(self, step: int) -> None:
        """Nothing is kept."""

    def _resume(self) -> None:
        self._resumed_busy, self._resumed = clock(self.engine.device), time.perf_counter()

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            started = self._wall()
            result = method(*args, **options)
            setattr(self._now, part, getattr(self._now, part) + self._wall() - started)
            return result

        return run

    def _wall(self) -> float:
        clock(self.engine.device)  # waits for a GPU
        return time.perf_counter()
