"""Pre-training as one module, because DeepSpeed wants one forward: L = L_mvm + L_mlm + L_vtc + L_vtm.

Dimensions: B views (k of each of B / k clips), Nh hidden tokens of a clip, L words, K hidden words, D width,
V vocabulary, P values of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from simvtp_ds.config import ObjectiveConfig
from simvtp_ds.model.blocks import mean_video, mean_words
from simvtp_ds.model.patches import gather_patches
from simvtp_ds.model.simvtp import SimVTP
from simvtp_ds.objectives.contrastive import global_contrast, local_contrast
from simvtp_ds.objectives.matching import match_loss
from simvtp_ds.objectives.pixels import pixel_loss, pixel_target
from simvtp_ds.objectives.whole_step import CachedContrast, Features, contrast_gradients, handed_on
from simvtp_ds.objectives.words import word_loss, words_of_each
from simvtp_ds.types import Batch, Losses

CAPTIONS_A_CHUNK = 16  # whose hidden words' logits are in memory at a time: about 200 words, 25 MB in float32


class PretrainOutputs(NamedTuple):
    """What the passes of one step give, before any loss."""

    rebuilt: Tensor  # [B, Nh, P], hidden patches as predicted
    target: Tensor  # float32 [B, Nh, P], hidden patches as they are, normalised
    joint_text: Tensor  # [B, L, D], words after the joint pass
    video_feature: Tensor  # float32 [B, D], mean of the video pass, any length
    text_feature: Tensor  # float32 [B, D], mean of the text pass without padding, any length
    match_logits: Tensor  # [B, 2], each video with its caption
    negative_logits: Tensor  # [B, 2], another video of the batch with the caption


class OfStep(NamedTuple):
    """What a micro batch must know of the others of its step, so that their losses are those of one large batch."""

    contrast: CachedContrast | None  # None: the contrast stays within the micro batch
    words: Tensor  # float32 [], see `words_of_each`


class PretrainTask(nn.Module):
    """The four objectives over one model.

    Every view and caption is embedded once, and the joint pass serves reconstruction, words and the matching positive
    (the released code embeds everything for each pass and runs the positive again). So the text's dropout, too, is
    drawn once a step and shared by its passes; without dropout the losses are the same.

    Args:
        model: The model to train.
        objectives: Weights of the losses and settings of the contrast. A weight of 0 keeps its parameters in the graph
            with a gradient of 0: ZeRO-2 needs every parameter on every rank.

    Attributes:
        fused_words: The words' loss by Liger's kernel, see `word_loss`.
    """

    def __init__(self, model: SimVTP, objectives: ObjectiveConfig):
        super().__init__()
        self.model = model
        self.objectives = objectives
        everybody = objectives.contrastive.scope == "global"
        self.fused_words = False
        self.scope = global_contrast if everybody else local_contrast
        self.contrasts_whole_step = everybody and objectives.vtc > 0

    def forward(self, batch: Batch, of_step: OfStep | None = None) -> Losses:
        """The losses of one micro batch on this rank; the mean over ranks is the loss of the global micro batch.

        Args:
            batch: The micro batch.
            of_step: From `of_step`, where a step has several micro batches.
        """
        cached, words = (None, None) if of_step is None else of_step
        out = self.outputs(batch)
        hidden_words = rearrange(out.joint_text, "b l d -> (b l) d")[batch.hidden_words]

        mvm = pixel_loss(out.rebuilt, out.target)
        chunks = math.ceil(batch.words.shape[0] / CAPTIONS_A_CHUNK)
        fused = self.model.word_head if self.fused_words else None
        mlm = word_loss(self.model.word_logits, hidden_words, batch.hidden_word_ids, chunks, words, fused)
        features = Features(out.video_feature, out.text_feature)
        vtc = self.contrast(features, batch.video_ids) if cached is None else handed_on(features, cached)
        vtm = match_loss(out.match_logits, out.negative_logits)

        weight = self.objectives
        total = weight.mvm * mvm + weight.mlm * mlm + weight.vtc * vtc + weight.vtm * vtm
        return Losses(total, mvm.detach(), mlm.detach(), vtc.detach(), vtm.detach())

    @torch.no_grad()
    def features(self, batch: Batch) -> Features:
        """What `forward` contrasts, without a graph and without the other passes."""
        video, text = self._embed(batch)[1:]
        video_out = self.model.encode_video_tokens(video)
        text_out = self.model.encode_text_tokens(text, batch.word_mask)
        return Features(mean_video(video_out), mean_words(text_out, batch.word_mask))

    def contrast(self, features: Features, video_ids: Tensor) -> Tensor:
        """L_vtc of this rank's clips, against those of this or of all ranks: float32 []."""
        return self.scope(features.video, features.text, self.objectives.contrastive.temperature, video_ids)

    def of_step(self, features: Sequence[Features], micro_batches: Sequence[Batch]) -> list[OfStep]:
        """What each micro batch of a step must know of the others; all ranks call it.

        Args:
            features: Of each micro batch, from `features`, if `contrasts_whole_step`.
            micro_batches: On any device.
        """
        cached: Sequence[CachedContrast | None] = [None] * len(micro_batches)
        if self.contrasts_whole_step:
            cached = contrast_gradients(self.contrast, features, [batch.video_ids for batch in micro_batches])
        hidden = sum(batch.hidden_words.shape[0] for batch in micro_batches)
        words = words_of_each(hidden, len(micro_batches), next(self.parameters()).device)
        return [OfStep(contrast, words) for contrast in cached]

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Frames [B, T, H, W, C], embedded visible patches [B, Nv, D] and words [B, L, D]."""
        # The bytes of a clip come to the device once; with one view a clip nothing is copied.
        views = batch.words.shape[0] // batch.frames.shape[0]
        frames = repeat(batch.frames, "clips t h w c -> (clips k) t h w c", k=views)
        return frames, self.model.embed_patches(frames, batch.visible), self.model.embed_words(batch.words)

    def outputs(self, batch: Batch) -> PretrainOutputs:
        """The encoder's passes (joint, wrong pair, video and text apart), the decoder and the matching head."""
        model, words_seen = self.model, batch.word_mask
        clips = batch.frames.shape[0]
        if self.objectives.vtm and clips < 2:
            raise ValueError(
                "video-text matching needs another video in the micro batch, and this one holds 1 clip: set "
                "train_micro_batch_size_per_gpu to 2 or more (2 x data.views) in the DeepSpeed JSON, or objectives.vtm "
                "to 0"
            )
        frames, video, text = self._embed(batch)

        passes = model.encode_passes(video, text, words_seen, batch.negative)

        config = model.config
        hidden = gather_patches(frames, batch.hidden, config.tubelet_size, config.patch_size)
        return PretrainOutputs(
            rebuilt=model.decode_pixels(passes.joint_video, batch.visible, batch.hidden),
            target=pixel_target(hidden),
            joint_text=passes.joint_text,
            video_feature=mean_video(passes.video),
            text_feature=mean_words(passes.text, words_seen),
            match_logits=model.match(passes.joint_video, passes.joint_text, words_seen),
            negative_logits=model.match(passes.wrong_video, passes.wrong_text, words_seen),
        )


def fuse_word_loss(task: nn.Module) -> None:
    """Let the pre-training task `task` compute the words' loss by Liger's fused kernel."""
    for module in task.modules():
        if isinstance(module, PretrainTask):
            module.fused_words = True
