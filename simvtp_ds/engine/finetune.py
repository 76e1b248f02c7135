"""A fine-tuning run: its inputs opened and checked, and what its loop does besides."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from simvtp_ds.config import check_sizes
from simvtp_ds.data.examples import RetrievalExamples
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.data.videos import Videos
from simvtp_ds.ds_settings import DeepSpeedSettings
from simvtp_ds.engine.job import Job, open_manifest, steps_per_epoch
from simvtp_ds.engine.schedule import build_schedule
from simvtp_ds.engine.start import check_words, finetuning_source, towers_start
from simvtp_ds.engine.train import Trainer
from simvtp_ds.finetune_config import FinetuneConfig
from simvtp_ds.interop.source import Source
from simvtp_ds.model.params import layered_groups
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.objectives.finetune import FinetuneTask

# (model, videos, tokenizer, data, rank, control, on_progress) to the scores of held-out videos; every rank calls it.
# Evaluation stands above the engine, so the launch script hands it in.
Validate: TypeAlias = Callable[..., dict[str, Any]]


def finetuning_job(config: FinetuneConfig, settings: DeepSpeedSettings, world_size: int, validate: Validate) -> Job:
    """Open manifest, tokenizer and the model to start from; cut off the validation videos; plan the steps.

    Args:
        config: The configuration; with `init`, the model's sizes become those of its weights.
        settings: The user's DeepSpeed JSON.
        world_size: Ranks of the run.
        validate: Scores the model on the validation videos.

    Raises:
        ValueError: one of them is missing or damaged or does not fit another, or there is no step to make.
    """
    source = finetuning_source(config)
    if source is not None:
        config = replace(config, model=source.model())
        check_sizes(config.data, config.model)
    if settings.zero_stage == 3:
        # Ranks score unequal numbers of held-out batches, and the average of the weights is kept where they are.
        raise ValueError(
            "fine-tuning needs the whole model on every rank: set zero_optimization.stage to 0, 1 or 2 in "
            f"{settings.path}"
        )
    data, model, objectives = config.data, config.model, config.objectives
    contrasted = settings.global_batch(world_size if objectives.contrastive.scope == "global" else 1)
    if contrasted < 2 or (objectives.vtm and settings.micro_batch < 2):
        raise ValueError(
            f"train_micro_batch_size_per_gpu is {settings.micro_batch} and {contrasted} clips are contrasted: the "
            "contrast needs 2 clips or more, and matching (objectives.vtm) 2 in a micro batch; raise it in "
            f"{settings.path}"
        )
    manifest = open_manifest(data.manifest, data.storage.root)
    tokenizer = choose_tokenizer(config, source)
    training, validation = Videos(manifest).split(config.validation.videos, config.run.seed)
    epoch = steps_per_epoch(len(training), f"training videos in {data.manifest}", settings, world_size)
    shared, match = config.towers == "shared", objectives.vtm > 0
    start = towers_start(config, source) if source is not None else None

    def build() -> tuple[nn.Module, list[dict[str, Any]]]:
        towers = TwoTower(
            model,
            data.num_frames,
            data.image_size,
            tokenizer.vocab_size,
            shared=shared,
            match=match,
            drop_path=config.drop_path,
        )
        if start is not None:
            towers.load_state_dict(start.state)
        task = FinetuneTask(towers, objectives)
        return task, layered_groups(task, settings.weight_decay, config.layer_decay)

    return Job(
        config=config,
        settings=settings,
        manifest=manifest,
        examples=RetrievalExamples(training, tokenizer, data, config.augment, config.run.seed),
        tokenizer=tokenizer,
        schedule=build_schedule(config.schedule, epoch),
        identity=[
            "towers",
            asdict(model),
            data.num_frames,
            data.image_size,
            tokenizer.vocab_size,
            [config.towers, match, config.validation.videos, config.ema_decay],
        ],
        build=build,
        trainer=partial(
            FinetuneTrainer,
            validate=partial(validate, videos=validation, tokenizer=tokenizer, data=data) if len(validation) else None,
            validate_every=config.validation.every * epoch,
        ),
        ema_decay=config.ema_decay,
        start=start,
    )


def choose_tokenizer(config: FinetuneConfig, source: Source | None) -> Tokenizer:
    """The tokenizer of the weights, or, where they have none, the one that the configuration names.

    Raises:
        ValueError: the configuration names one whose words are not those of the weights.
    """
    data = config.data
    own = source.tokenizer if source is not None else None
    tokenizer = own or Tokenizer.load(data.tokenizer or data.manifest)
    if own is not None and data.tokenizer and not Tokenizer.load(data.tokenizer).same_words(own):
        raise ValueError(
            f"data.tokenizer {data.tokenizer} has other words than the model in {config.init} was trained with: "
            "leave data.tokenizer empty to use the model's own"
        )
    if source is not None:
        check_words(source, tokenizer)
    return tokenizer


@dataclass(kw_only=True)
class FinetuneTrainer(Trainer):
    """The loop, with scores of held-out videos."""

    validate: Callable[..., dict[str, Any]] | None
    validate_every: int  # steps

    def after_step(self, done: int) -> None:
        """Score the held-out videos when it is time, with the average of the weights where one is kept."""
        if self.validate is None or (done % self.validate_every and done != self.schedule.total_steps):
            return
        feed = lambda _done, _total: self.watchdog.feed()  # noqa: E731
        with self.ema.in_module() if self.ema is not None else nullcontext():
            scores = self.validate(self.engine.module.model, rank=self.rank, control=self.control, on_progress=feed)
        self.watchdog.feed()
        if self.journal is not None:
            self.journal.validation(done, scores)
