"""What a run is made of: frozen dataclasses, one field one meaning.

The DeepSpeed JSON owns micro batch, accumulation, dtype, clipping, ZeRO, optimizer, peak learning rate and weight
decay. Everything here is what that file does not know. Precedence: defaults < preset < --config < command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from simvtp_ds.data_config import DataConfig, require

RUNNING_CELL = 4  # time steps after which the running cell of masks.rebuild_half starts again


@dataclass(frozen=True)
class MaskConfig:
    """How much is hidden.

    Args:
        tube_ratio: Share of the spatial patches hidden at every time step (tube mask).
        word_ratio: Probability that a word is hidden; a hidden word always becomes [MASK].
        rebuild_half: Rebuild only half of the hidden patches, another half at each time step (the running cell of
            VideoMAE V2, arXiv 2303.16727). The decoder, and so the step, gets cheaper; the loss has fewer targets.
    """

    tube_ratio: float = 0.9
    word_ratio: float = 0.75
    rebuild_half: bool = False

    def __post_init__(self) -> None:
        require(0 < self.tube_ratio < 1, f"masks.tube_ratio is {self.tube_ratio}; give a share between 0 and 1")
        require(0 <= self.word_ratio <= 1, f"masks.word_ratio is {self.word_ratio}; give a share from 0 to 1")


@dataclass(frozen=True)
class ModelConfig:
    """One ViT for video, text and both, and a small decoder for pixels (SimVTP, arXiv 2212.03490). Default: base.

    Args:
        width: Width of the encoder (D).
        depth: Blocks of the encoder.
        heads: Attention heads of the encoder.
        decoder_width: Width of the pixel decoder.
        decoder_depth: Blocks of the pixel decoder.
        decoder_heads: Attention heads of the pixel decoder.
        mlp_ratio: Width of the hidden layer of a block's MLP over the block's width.
        patch_size: Height and width of a patch, in pixels.
        tubelet_size: Frames of a patch.
        text_positions: Rows of the text position table.
        text_dropout: Dropout after the text embeddings.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    decoder_width: int = 384
    decoder_depth: int = 4
    decoder_heads: int = 6
    mlp_ratio: float = 4.0
    patch_size: int = 16
    tubelet_size: int = 2
    text_positions: int = 512
    text_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads", "mlp_ratio"):
            require(getattr(self, name) > 0, f"model.{name} is {getattr(self, name)}; it must be above 0")
        require(0 <= self.text_dropout < 1, f"model.text_dropout is {self.text_dropout}; give a probability below 1")


def check_sizes(data: DataConfig, model: ModelConfig) -> None:
    """ValueError where a model of these sizes cannot read such clips and captions."""
    for whole, part, names in (
        (data.image_size, model.patch_size, "data.image_size {} is not a multiple of model.patch_size {}"),
        (data.num_frames, model.tubelet_size, "data.num_frames {} is not a multiple of model.tubelet_size {}"),
        (model.width, model.heads, "model.width {} is not a multiple of model.heads {}"),
        (model.decoder_width, model.decoder_heads, "model.decoder_width {} is not a multiple of .decoder_heads {}"),
    ):
        require(part >= 1 and whole % part == 0, names.format(whole, part))
    require(
        data.max_words <= model.text_positions,
        f"data.max_words {data.max_words} is more than model.text_positions {model.text_positions}",
    )


@dataclass(frozen=True)
class ContrastiveConfig:
    """Video-text contrast.

    Args:
        temperature: Fixed temperature of the softmax.
        scope: global: negatives from all ranks, gathered with gradient; local: each rank's own, as the authors had it.
    """

    temperature: float = 0.05
    scope: Literal["global", "local"] = "global"

    def __post_init__(self) -> None:
        require(
            self.temperature > 0,
            f"objectives.contrastive.temperature is {self.temperature}; give one above 0, such as 0.05",
        )


@dataclass(frozen=True)
class ObjectiveConfig:
    """L = mvm L_mvm + mlm L_mlm + vtc L_vtc + vtm L_vtm (the paper: all 1).

    Args:
        mvm: Weight of masked video modelling.
        mlm: Weight of masked language modelling.
        vtc: Weight of video-text contrast.
        vtm: Weight of video-text matching.
        contrastive: Settings of video-text contrast.
    """

    mvm: float = 1.0
    mlm: float = 1.0
    vtc: float = 1.0
    vtm: float = 1.0
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)


@dataclass(frozen=True)
class ComputeConfig:
    """Ways to compute the same step; docs/performance.md says what each is worth.

    Args:
        compile: Compile the transformer blocks (torch.compile). The first steps take minutes.
        recompute: Keep only the inputs of the blocks and run each again in the backward pass (activation
            checkpointing): less memory, a third more time.
        tf32: Products of fp32 runs in TF32, on GPUs that have it (Ampere and later): faster, 10 bits of mantissa.
        varlen: Attention of pre-training over sequences of several lengths in place of a mask (flash attention): same
            numbers, no work for what the mask hides. GPUs from Ampere on, fp16 or bf16.
        liger: Cross entropy of pre-training's hidden words by Liger's fused kernel: same numbers, logits are computed
            once. GPUs, where liger-kernel is installed.
    """

    compile: bool = False
    recompute: bool = False
    tf32: bool = False
    varlen: bool = False
    liger: bool = False


@dataclass(frozen=True)
class ScheduleConfig:
    """Length of the run and shape of the learning rate: multipliers of the peak in the DeepSpeed JSON, set every step.

    Args:
        epochs: Epochs of the run.
        warmup_epochs: Epochs of linear warm-up, from `warmup_start` to 1.
        warmup_start: First multiplier (the paper: 1e-6 / 1.5e-4).
        floor: Last multiplier of the cosine (the paper: 1e-5 / 1.5e-4).
        max_steps: Steps of the run, in place of `epochs`; 0: `epochs` decides.
    """

    epochs: float = 200.0
    warmup_epochs: float = 40.0
    warmup_start: float = 1e-6 / 1.5e-4
    floor: float = 1e-5 / 1.5e-4
    max_steps: int = 0

    def __post_init__(self) -> None:
        require(self.warmup_epochs >= 0, f"schedule.warmup_epochs is {self.warmup_epochs}; give 0 or more")


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives, what it keeps, when it gives up.

    Args:
        dir: Folder of the run: config, logs, TensorBoard, checkpoints.
        seed: Seed of everything random: order, crops, masks, dropout, initial weights.
        save_every: Steps between two checkpoints; one more is written at the end.
        keep: Checkpoints kept; older ones are deleted after a newer one is complete.
        log_every: Steps between two log lines.
        picture_every: Steps between two pictures of what the model rebuilds of the first four videos, in TensorBoard
            and in the folder's pictures/; one more at the end. 0: none. Pre-training only.
        max_skipped: Skipped steps in a row (loss not finite on some rank, or fp16 overflow with the scale at its
            floor) after which the run stops.
        step_timeout: Seconds without a finished step after which a rank ends itself and so the run.
        mirror: Second location of the checkpoints, a folder of this run alone, preferably on another disk: complete
            ones are copied there in the background, and a run whose own are gone goes on from there. Empty: none.
    """

    dir: str = "runs/pretrain"
    seed: int = 0
    save_every: int = 1000
    keep: int = 3
    log_every: int = 10
    picture_every: int = 0
    max_skipped: int = 20
    step_timeout: float = 600.0
    mirror: str = ""

    def __post_init__(self) -> None:
        for name in ("save_every", "keep", "log_every", "max_skipped"):
            require(getattr(self, name) >= 1, f"run.{name} is {getattr(self, name)}; it must be at least 1")
        require(self.picture_every >= 0, f"run.picture_every is {self.picture_every}; give steps, or 0 for none")
        require(self.step_timeout > 0, f"run.step_timeout is {self.step_timeout}; give seconds above 0")
        require(bool(self.dir), "run.dir is empty; name the folder of the run")


@dataclass(frozen=True)
class PretrainConfig:
    """A pre-training run.

    Args:
        init: Weights to start from: a run, a checkpoint, or a file or folder of VideoMAE or SimVTP (docs/weights.md);
            their sizes must be those of `model`. Empty: from scratch.
        init_words: Word embeddings to start from: a folder of BERT, or its name in the local cache of Hugging Face.
            Empty: those of `init` where it has some.
        data: Clips, pixels and words.
        masks: How much is hidden.
        model: Sizes of the model.
        objectives: Weights and settings of the four losses.
        compute: Ways to compute the same step.
        schedule: Length and learning-rate shape.
        run: Folder, seed, checkpoints, logging.
    """

    init: str = ""
    init_words: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objectives: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        data, model = self.data, self.model
        check_sizes(data, model)
        patches = (data.image_size // model.patch_size) ** 2
        hidden = int(self.masks.tube_ratio * patches)
        require(
            0 < hidden < patches,
            f"masks.tube_ratio {self.masks.tube_ratio} hides {hidden} of {patches} patches: some must be hidden and "
            "some visible",
        )
        steps = data.num_frames // model.tubelet_size
        require(
            not self.masks.rebuild_half or steps % RUNNING_CELL == 0,
            f"masks.rebuild_half needs a multiple of {RUNNING_CELL} time steps, and data.num_frames {data.num_frames} "
            f"with model.tubelet_size {model.tubelet_size} makes {steps}: change one of them, or leave it off",
        )
