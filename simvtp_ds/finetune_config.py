"""What a fine-tuning run is made of; the pieces that it shares with pre-training are in config.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from simvtp_ds.config import ComputeConfig, ContrastiveConfig, ModelConfig, RunConfig, ScheduleConfig, check_sizes
from simvtp_ds.data_config import DataConfig, require


@dataclass(frozen=True)
class AugmentConfig:
    """How a training clip is changed; one draw a clip and epoch, the same for all its frames.

    Args:
        crop_area: Least and largest share of the picture that the crop covers (random resized crop; only where
            data.random_crop is true).
        crop_aspect: Least and largest width of the crop over its height.
        operations: RandAugment operations a clip (the paper's rand-m7-n4-mstd0.5-inc1: 4); 0: none. They change
            colours, which captions may name.
        magnitude: Their strength, 0 to 10.
        magnitude_std: Standard deviation of the strength.
        erase: Probability that a rectangle of the clip becomes noise.
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    operations: int = 4
    magnitude: float = 7.0
    magnitude_std: float = 0.5
    erase: float = 0.25

    def __post_init__(self) -> None:
        low, high = self.crop_area
        require(
            0 < low <= high <= 1, f"augment.crop_area is {list(self.crop_area)}; give two shares, the smaller first"
        )
        low, high = self.crop_aspect
        require(0 < low <= high, f"augment.crop_aspect is {list(self.crop_aspect)}; give two ratios, the smaller first")
        require(self.operations >= 0, f"augment.operations is {self.operations}; give 0 or more")
        require(0 <= self.magnitude <= 10, f"augment.magnitude is {self.magnitude}; give a strength from 0 to 10")
        require(self.magnitude_std >= 0, f"augment.magnitude_std is {self.magnitude_std}; give 0 or more")
        require(0 <= self.erase <= 1, f"augment.erase is {self.erase}; give a probability")


@dataclass(frozen=True)
class RetrievalObjectiveConfig:
    """L = vtc L_vtc + vtm L_vtm (the paper: 1 and 0).

    Args:
        vtc: Weight of video-text contrast.
        vtm: Weight of video-text matching, against the most similar other video of the micro batch; above 0 the model
            gets a matching head, which evaluation can re-rank with.
        contrastive: Settings of video-text contrast.
    """

    vtc: float = 1.0
    vtm: float = 0.0
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)


@dataclass(frozen=True)
class ValidationConfig:
    """Scores while training, on videos cut from the training manifest; a test set is never looked at.

    Args:
        videos: Videos held out of training (a function of run.seed and their ids); 0: none.
        every: Epochs between two evaluations; one more comes at the end.
    """

    videos: int = 500
    every: int = 5

    def __post_init__(self) -> None:
        require(self.videos >= 0, f"validation.videos is {self.videos}; give a number, or 0 for none")
        require(self.every >= 1, f"validation.every is {self.every}; it must be at least 1")


@dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning run: two towers for text-to-video retrieval.

    Args:
        init: Weights to start from: a run, a checkpoint, or a file or folder of SimVTP or VideoMAE (docs/weights.md);
            model sizes and tokenizer are its own where it has them. Empty: from scratch.
        init_words: Word embeddings to start from where `init` has none: a folder of BERT, or its name in the local
            cache of Hugging Face.
        data: Clips, pixels and words.
        augment: How training clips are changed.
        model: Sizes of each tower, for a start from scratch.
        towers: untied: two encoders, each a copy of the pre-trained one; shared: one for both.
        drop_path: Stochastic depth of the last block; the first has none.
        layer_decay: Factor of the learning rate from each block to the one before it.
        ema_decay: Decay of the moving average of the weights, a step; 0: none. Where there is one, it is evaluated.
        objectives: Weights and settings of the losses.
        compute: Ways to compute the same step.
        schedule: Length and learning-rate shape.
        validation: Scores while training.
        run: Folder, seed, checkpoints, logging.
    """

    init: str = ""
    init_words: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    towers: Literal["untied", "shared"] = "untied"
    drop_path: float = 0.1
    layer_decay: float = 0.75
    ema_decay: float = 0.0
    objectives: RetrievalObjectiveConfig = field(default_factory=RetrievalObjectiveConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        require(0 <= self.drop_path < 1, f"drop_path is {self.drop_path}; give a probability below 1")
        require(0 < self.layer_decay <= 1, f"layer_decay is {self.layer_decay}; give a factor above 0, at most 1")
        require(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}; give a factor below 1, such as 0.999")
        require(
            self.objectives.vtc > 0,
            f"objectives.vtc is {self.objectives.vtc}; retrieval needs it, give a weight above 0",
        )
        require(self.objectives.vtm >= 0, f"objectives.vtm is {self.objectives.vtm}; give a weight, or 0 for none")
        require(
            self.data.views == 1,
            f"data.views is {self.data.views}; fine-tuning hides nothing and shows each clip once, leave it at 1",
        )
        require(
            not self.data.mixture,
            f"data.mixture names {len(self.data.mixture)} folders; fine-tuning reads one, name it in data.manifest",
        )
        require(
            not self.run.picture_every,
            f"run.picture_every is {self.run.picture_every}; fine-tuned towers rebuild no pixels, leave it at 0",
        )
        for name in ("varlen", "liger"):
            require(
                not getattr(self.compute, name), f"compute.{name} is on; it is for pre-training's step, leave it off"
            )
        if not self.init:  # else the sizes are the checkpoint's, and checked when they are known
            check_sizes(self.data, self.model)
