"""A pre-training run: its inputs opened and checked, ready for `engine.run.train`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from simvtp_ds.config import PretrainConfig
from simvtp_ds.data.examples import PretrainExamples
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.ds_settings import DeepSpeedSettings
from simvtp_ds.engine.run import Job, open_manifest, steps_per_epoch
from simvtp_ds.engine.schedule import build_schedule
from simvtp_ds.model.params import parameter_groups
from simvtp_ds.model.patches import token_grid
from simvtp_ds.model.simvtp import SimVTP
from simvtp_ds.objectives.pretrain import PretrainTask


def pretraining_job(config: PretrainConfig, settings: DeepSpeedSettings, world_size: int) -> Job:
    """Open manifest and tokenizer, plan the steps.

    Raises:
        ValueError: one of them is missing or damaged, there are fewer clips than one step takes, or no step to make.
    """
    data, model = config.data, config.model
    manifest = open_manifest(data.manifest)
    tokenizer = Tokenizer.load(data.tokenizer or data.manifest)
    grid = token_grid(data.num_frames, data.image_size, model.tubelet_size, model.patch_size)

    def build() -> tuple[nn.Module, list[dict[str, Any]]]:
        task = PretrainTask(SimVTP(model, data.num_frames, data.image_size, tokenizer.vocab_size), config.objectives)
        return task, parameter_groups(task, settings.weight_decay)

    return Job(
        config=config,
        settings=settings,
        manifest=manifest,
        examples=PretrainExamples(manifest, tokenizer, data, config.masks, grid, config.run.seed),
        tokenizer=tokenizer,
        schedule=build_schedule(
            config.schedule, steps_per_epoch(len(manifest), f"captions in {data.manifest}", settings, world_size)
        ),
        identity=[asdict(model), data.num_frames, data.image_size, tokenizer.vocab_size],
        build=build,
    )
