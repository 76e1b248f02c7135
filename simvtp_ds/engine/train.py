"""The loop that drives DeepSpeed: batch, forward, backward, step, log, save."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from simvtp_ds.config import RunConfig
from simvtp_ds.data.loader import Loader
from simvtp_ds.ds_settings import DeepSpeedSettings
from simvtp_ds.engine import checkpoint
from simvtp_ds.engine.deepspeed_engine import drop_bad_gradients
from simvtp_ds.engine.ema import Ema
from simvtp_ds.engine.failures import (
    SkippedSteps,
    StopRequest,
    keep_output_writable,
    not_finite,
)
from simvtp_ds.engine.meters import Journal, Window, memory_gib
from simvtp_ds.engine.mirror import Mirror
from simvtp_ds.engine.ranks import Control, Rank
from simvtp_ds.engine.saving import AVERAGE, load, save
from simvtp_ds.engine.schedule import Schedule, set_learning_rate
from simvtp_ds.engine.universal import universal
from simvtp_ds.engine.watchdog import Watchdog
from simvtp_ds.types import AnyLosses, to_device


def seed_dropout(seed: int, step: int, micro: int, rank: int) -> None:
    """Reseed the generators that dropout draws from, so that a resumed step drops what the original step dropped."""
    digest = hashlib.blake2b(f"dropout {seed} {step} {micro} {rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(kw_only=True)
class Trainer:
    """One run on one rank: what `train` needs at every step."""

    engine: Any
    loader: Loader
    settings: DeepSpeedSettings
    schedule: Schedule
    position: checkpoint.Position  # of the first step
    config: RunConfig
    rank: Rank
    control: Control
    watchdog: Watchdog
    journal: Journal | None = None  # on the main rank
    ema: Ema | None = None  # the moving average of the weights, where one is kept
    mirror: Mirror | None = None  # on the main rank, where there is a second location
    stopped_by: str = ""  # who asked to stop, see `StopRequest`

    def say(self, line: str) -> None:
        """One line, from the main rank."""
        if self.journal is not None:
            self.journal.say(line)

    def train_step(self, step: int, batches: Iterator[Any]) -> list[AnyLosses]:
        """One global step: forward and backward over the accumulated micro batches, one update.

        The losses are those of all its clips in one batch: contrast and words do not shrink with the micro batches.
        """
        self.set_learning_rate(step)
        task, device, accumulation = self.engine.module, self.engine.device, self.settings.accumulation
        if accumulation == 1:
            return [self.micro_step(step, 0, to_device(next(batches), device))]
        micro_batches = [next(batches) for _ in range(accumulation)]  # on the host
        features = []
        for micro, batch in enumerate(micro_batches if task.contrasts_whole_step else ()):
            seed_dropout(self.position.seed, step, micro, self.rank.rank)
            features.append(task.features(to_device(batch, device)))
        of_step = task.of_step(features, micro_batches)
        return [
            self.micro_step(step, micro, to_device(batch, device), of_step[micro])
            for micro, batch in enumerate(micro_batches)
        ]

    def batches(self) -> Iterator[Any]:
        """The loader's batches; the watchdog knows whether one is waited for or worked on."""
        batches = iter(self.loader)
        while True:
            self.watchdog.at("the data")
            batch = next(batches, None)
            if batch is None:
                return
            self.watchdog.at("forward and backward")
            yield batch

    def set_learning_rate(self, step: int) -> None:
        """Of every parameter group, for global step `step`."""
        multiplier = self.schedule.multiplier(step)
        set_learning_rate(self.engine.optimizer.param_groups, self.settings.lr, multiplier)

    def micro_step(self, step: int, micro: int, *inputs: Any) -> AnyLosses:
        """Forward and backward of one micro batch on the device; with the last one of a step, the update."""
        seed_dropout(self.position.seed, step, micro, self.rank.rank)
        loss = self.engine(*inputs)
        self.engine.backward(loss.total)  # DeepSpeed divides by the accumulation
        last = micro + 1 == self.settings.accumulation
        if last and self.settings.zero_stage == 0 and self.settings.dtype == "fp32":
            drop_bad_gradients(self.engine)
        self.engine.step()
        return type(loss)(*(part.detach() for part in loss))

    def check_applied(self, step: int, losses: list[AnyLosses], skipped: SkippedSteps) -> bool:
        """Whether the update was made; if not, say why, and stop the run if that will not mend by itself."""
        if not getattr(self.engine.optimizer, "overflow", False):
            skipped.applied()
            return True
        found = self.control.gather(not_finite(losses))
        bad = {rank: parts for rank, parts in enumerate(found) if parts}
        scale = self.loss_scale()
        if bad:
            reason = "; ".join(f"{', '.join(parts)} not finite on rank {rank}" for rank, parts in bad.items())
        else:
            reason = f"gradient not finite at loss scale {scale:g}"
        floor = self.settings.raw.get("fp16", {}).get("min_loss_scale", 1)
        self.say(f"step {step + 1} skipped: {reason}")
        skipped.skipped(step + 1, reason, counts=bool(bad) or self.settings.dtype != "fp16" or scale <= floor)
        return False

    def after_step(self, done: int) -> None:
        """What a kind of training does besides when `done` steps are done and logged, before they are saved."""

    def loss_scale(self) -> float:
        """The fp16 loss scale, 1 for other dtypes."""
        return float(getattr(self.engine.optimizer, "cur_scale", 1.0)) if self.settings.dtype == "fp16" else 1.0

    def log(self, window: Window, step: int) -> None:
        """Average the window's losses over ranks and write them; the only place where the host waits for the device."""
        losses = torch.stack(window.losses)
        if self.rank.world_size > 1:
            torch.distributed.all_reduce(losses)
            losses /= self.rank.world_size
        values = [dict(zip(window.parts, step, strict=True)) for step in losses.tolist()]
        elapsed = time.perf_counter() - window.started
        waited = self.loader.wait_seconds - window.data_wait
        norm = self.engine.get_global_grad_norm()
        told = {
            "lr": self.settings.lr * self.schedule.multiplier(step - 1),
            "loss_scale": self.loss_scale(),
            "grad_norm": math.nan if norm is None else float(norm),
            "clips_per_s": len(window.steps) * self.position.global_batch / elapsed,
            "data_wait_share": min(1.0, waited / elapsed),
            "memory_gib": memory_gib(self.engine.device),
            "seconds_per_step": elapsed / len(window.steps),
        }
        if self.journal is not None:
            self.journal.steps(window.steps, values, {k: v for k, v in told.items() if math.isfinite(v)})

    def load(self, folder: Path, convert: bool) -> None:
        """Take up a checkpoint; all ranks together. `convert`: it was written by another number of ranks."""
        self.watchdog.feed()
        run, waiting = Path(self.config.dir), self.watchdog.feed
        with universal(folder, run, self.rank, self.control, waiting) if convert else nullcontext(folder) as source:
            load(self.engine, source)
        if self.ema is not None:
            self.ema.load(load_file(folder / AVERAGE))

    def save(self, step: int) -> None:
        """Write a checkpoint; all ranks together."""
        keep_output_writable()
        self.watchdog.at("the checkpoint")
        started = time.perf_counter()
        position = replace(self.position, step=step)
        average = self.ema.full if self.ema is not None else None
        folder = save(self.engine, Path(self.config.dir), position, self.rank, self.control, self.config.keep, average)
        self.say(f"checkpoint {folder} written in {time.perf_counter() - started:.1f} s")
        if self.mirror is not None:
            for line in self.mirror.told():
                self.say(line)
            self.mirror.copy(folder)

    def train(self) -> str:
        """Run to the last step, or until a signal asks to stop.

        Returns:
            "finished", or "stopped" after a checkpoint that the next start resumes from.

        Raises:
            TrainingError: the run cannot go on; its message says why and what to do.
        """
        stop, skipped = StopRequest(), SkippedSteps(self.config.max_skipped)
        batches = self.batches()
        saved = first = self.position.step
        window = Window(self.loader.wait_seconds)
        outcome = "finished"
        for step in range(first, self.schedule.total_steps):
            self.watchdog.at("the start", step + 1)
            losses = self.train_step(step, batches)
            self.watchdog.at("the end")
            if self.check_applied(step, losses, skipped) and self.ema is not None:
                self.ema.update(step)
            done = step + 1
            window.steps.append(done)
            window.parts = losses[0]._fields
            window.losses.append(torch.stack([torch.stack(loss) for loss in losses]).float().mean(0))
            stopping = next(filter(None, self.control.gather(stop.pending())), "")
            if stopping:
                keep_output_writable()
            if done % self.config.log_every == 0 or done in (first + 1, self.schedule.total_steps) or stopping:
                self.log(window, done)
                window = Window(self.loader.wait_seconds)
            self.watchdog.feed()
            self.after_step(done)
            if done % self.config.save_every == 0 or done == self.schedule.total_steps or stopping:
                self.save(done)
                saved = done
                self.watchdog.feed()
            if stopping and done < self.schedule.total_steps:
                self.say(f"stopped by {stopping} after step {done}: resume me with --resume auto")
                outcome, self.stopped_by = "stopped", stopping
                break
        if outcome == "finished":
            next(batches, None)  # the loader's last word: it refuses a run in which too many clips were bad
        self.say(f"{outcome} at step {saved}: {seen_and_bad(self.loader)}; {skipped.total} steps skipped")
        return outcome


def seen_and_bad(loader: Loader) -> str:
    """This rank's clips in words."""
    return f"{loader.clips_seen} clips on this rank, {loader.clips_bad} bad and replaced"
