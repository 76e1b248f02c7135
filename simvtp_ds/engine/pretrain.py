"""A pre-training run: its inputs opened and checked, ready for `engine.run.train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from simvtp_ds.config import PretrainConfig
from simvtp_ds.data.examples import PretrainExamples, clips_of
from simvtp_ds.data.mixture import Mixture
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.data_config import DataConfig
from simvtp_ds.ds_settings import DeepSpeedSettings
from simvtp_ds.engine.job import Job, open_manifest, steps_per_epoch
from simvtp_ds.engine.schedule import build_schedule
from simvtp_ds.engine.start import pretraining_start
from simvtp_ds.engine.train import Trainer
from simvtp_ds.model.params import parameter_groups
from simvtp_ds.model.patches import token_grid
from simvtp_ds.model.simvtp import SimVTP
from simvtp_ds.objectives.pretrain import PretrainTask

# (configuration, manifest, tokenizer) to a function that draws what the model makes of some clips, of (model, step,
# rank, control, together, journal) to lines to be said; every rank calls it. Evaluation stands above the engine, so the
# launch script hands it in.
Pictures: TypeAlias = Callable[..., Callable[..., list[str]]]


def pretraining_job(
    config: PretrainConfig, settings: DeepSpeedSettings, world_size: int, pictures: Pictures | None = None
) -> Job:
    """Open manifest, tokenizer and the weights to start from, plan the steps.

    Args:
        config, settings, world_size: Of the run.
        pictures: Draws where run.picture_every asks for it.

    Raises:
        ValueError: one of them is missing or damaged, views do not fill the micro batch, there are fewer clips than one
            step takes, or no step to make.
    """
    data, model = config.data, config.model
    root = data.storage.root
    manifest = Mixture.open(data.mixture, root) if data.mixture else open_manifest(data.manifest, root)
    tokenizer = choose_tokenizer(data)
    start = pretraining_start(config, tokenizer)
    grid = token_grid(data.num_frames, data.image_size, model.tubelet_size, model.patch_size)
    examples = PretrainExamples(
        manifest, tokenizer, data, config.masks, grid, config.run.seed, matching=config.objectives.vtm > 0
    )
    clips_of(settings.micro_batch, examples)  # refuses a micro batch that views do not fill
    corpora = ", ".join(data.mixture) or data.manifest
    epoch = steps_per_epoch(len(manifest), f"captions in {corpora}", settings, world_size, data.views)

    def build() -> tuple[nn.Module, list[dict[str, Any]]]:
        simvtp = SimVTP(model, data.num_frames, data.image_size, tokenizer.vocab_size)
        if start is not None:
            simvtp.load_state_dict(start.state, strict=False)  # its names were checked
        task = PretrainTask(simvtp, config.objectives)
        return task, parameter_groups(task, settings.weight_decay)

    return Job(
        config=config,
        settings=settings,
        manifest=manifest,
        examples=examples,
        tokenizer=tokenizer,
        schedule=build_schedule(config.schedule, epoch),
        # Views decide which rows a step takes; runs without are those of releases that had none.
        identity=[asdict(model), data.num_frames, data.image_size, tokenizer.vocab_size]
        + ([data.views] if data.views > 1 else []),
        build=build,
        start=start,
        trainer=partial(
            PretrainTrainer,
            take_picture=pictures(config, manifest, tokenizer) if pictures and config.run.picture_every else None,
        ),
    )


@dataclass(kw_only=True)
class PretrainTrainer(Trainer):
    """The loop, with pictures of what the model rebuilds."""

    take_picture: Callable[..., list[str]] | None

    def after_step(self, done: int) -> None:
        """A picture when it is time."""
        if self.take_picture is None:
            return
        if done % self.config.picture_every and done != self.schedule.total_steps:
            return
        together = self.settings.zero_stage == 3
        model = self.engine.module.model
        for line in self.take_picture(model, done, self.rank, self.control, together, self.journal):
            self.say(line)
        self.watchdog.feed()


def choose_tokenizer(data: DataConfig) -> Tokenizer:
    """The tokenizer that the configuration names, else the one beside the manifest or manifests.

    Raises:
        ValueError: It is missing or damaged, or the manifests have different ones.
    """
    if data.tokenizer:
        return Tokenizer.load(data.tokenizer)
    first, *others = data.mixture or [data.manifest]
    tokenizer = Tokenizer.load(first)
    for folder in others:
        if not tokenizer.same_words(Tokenizer.load(folder)):
            raise ValueError(
                f"data.mixture: the tokenizers of {first} and {folder} have different words; name the one to use in "
                "data.tokenizer (launch/prepare.py --tokenizer gives several corpora the same)"
            )
    return tokenizer
