"""What a run trains on what, opened and checked before there is a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from simvtp_ds.config import PretrainConfig
from simvtp_ds.data.backend import choose_backend
from simvtp_ds.data.examples import Examples
from simvtp_ds.data.manifest import Manifest
from simvtp_ds.data.mixture import Mixture
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.ds_settings import DeepSpeedSettings
from simvtp_ds.engine.compute import check_compute
from simvtp_ds.engine.schedule import Schedule
from simvtp_ds.engine.start import Start
from simvtp_ds.engine.train import Trainer
from simvtp_ds.finetune_config import FinetuneConfig


@dataclass(frozen=True)
class Job:
    """What a run trains on what: all that pre-training and fine-tuning differ in. Opened and checked before any model.

    Attributes:
        config: The resolved configuration.
        settings: The user's DeepSpeed JSON.
        manifest: Where the clips come from.
        examples: Makes the batches.
        tokenizer: Saved with the run.
        schedule: Steps and learning rate.
        identity: What a checkpoint must agree in besides batch, seed and manifest, JSON values.
        build: Makes the task module and its parameter groups; called once torch's generator is seeded.
        trainer: `Trainer`, or one that does more.
        ema_decay: See `Ema`; 0: no average is kept.
        start: The weights that `build` starts from, where they are not random.
    """

    config: PretrainConfig | FinetuneConfig
    settings: DeepSpeedSettings
    manifest: Manifest | Mixture
    examples: Examples[Any]
    tokenizer: Tokenizer
    schedule: Schedule
    identity: list[Any]
    build: Callable[[], tuple[torch.nn.Module, list[dict[str, Any]]]]
    trainer: Callable[..., Trainer] = Trainer
    ema_decay: float = 0.0
    start: Start | None = None

    def __post_init__(self) -> None:
        choose_backend(self.config.data)  # ValueError where it is not there
        check_compute(self.config.compute, self.settings)


def open_manifest(folder: str, root: str) -> Manifest:
    """The training manifest, see `Manifest.open`; ValueError where it is not named, missing or damaged."""
    if not folder:
        raise ValueError("--data.manifest is not set: name the folder that launch/prepare.py wrote")
    return Manifest.open(folder, root)


def steps_per_epoch(count: int, things: str, settings: DeepSpeedSettings, world_size: int, views: int = 1) -> int:
    """Steps that `count` clips of `views` views each fill; ValueError where they do not fill one."""
    clips = settings.global_batch(world_size) // views
    if count < clips:
        shared = f" / data.views {views}" if views > 1 else ""
        raise ValueError(
            f"there are {count} {things}, one step takes {clips} "
            f"(train_micro_batch_size_per_gpu {settings.micro_batch} x gradient_accumulation_steps "
            f"{settings.accumulation} x {world_size} ranks{shared}): lower one of them in {settings.path}"
        )
    return count // clips
