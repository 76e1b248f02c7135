"""Pre-training as one module, because DeepSpeed wants one forward: L = L_mvm + L_mlm + L_vtc + L_vtm.

Dimensions: B views (k of each of B / k clips), Nh hidden tokens of a clip, L words, K hidden words, D width,
V vocabulary, P values of a patch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from einops import rearrange, repeat
from torch import Tensor, nn

from simvtp_ds.config import ObjectiveConfig
from simvtp_ds.model.blocks import mean_video, mean_words
from simvtp_ds.model.patches import gather_patches
from simvtp_ds.model.simvtp import SimVTP
from simvtp_ds.objectives.contrastive import global_contrast, local_contrast
from simvtp_ds.objectives.matching import match_loss
from simvtp_ds.objectives.pixels import pixel_loss, pixel_target
from simvtp_ds.objectives.words import word_loss
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


class PretrainTask(nn.Module):
    """The four objectives over one model.

    Every view and caption is embedded once, and the joint pass serves reconstruction, words and the matching positive
    (the released code embeds everything for each pass and runs the positive again). So the text's dropout, too, is
    drawn once a step and shared by its passes; without dropout the losses are the same.

    Args:
        model: The model to train.
        objectives: Weights of the losses and settings of the contrast. A weight of 0 keeps its parameters in the graph
            with a gradient of 0: ZeRO-2 needs every parameter on every rank.
    """

    def __init__(self, model: SimVTP, objectives: ObjectiveConfig):
        super().__init__()
        self.model = model
        self.objectives = objectives
        self.contrast = global_contrast if objectives.contrastive.scope == "global" else local_contrast

    def forward(self, batch: Batch) -> Losses:
        """The losses of one micro batch on this rank; the mean over ranks is the loss of the global micro batch."""
        out = self.outputs(batch)
        hidden_words = rearrange(out.joint_text, "b l d -> (b l) d")[batch.hidden_words]

        mvm = pixel_loss(out.rebuilt, out.target)
        chunks = math.ceil(batch.words.shape[0] / CAPTIONS_A_CHUNK)
        mlm = word_loss(self.model.word_logits, hidden_words, batch.hidden_word_ids, chunks)
        temperature = self.objectives.contrastive.temperature
        vtc = self.contrast(out.video_feature, out.text_feature, temperature, batch.video_ids)
        vtm = match_loss(out.match_logits, out.negative_logits)

        weight = self.objectives
        total = weight.mvm * mvm + weight.mlm * mlm + weight.vtc * vtc + weight.vtm * vtm
        return Losses(total, mvm.detach(), mlm.detach(), vtc.detach(), vtm.detach())

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
        # The bytes of a clip come to the device once; with one view a clip nothing is copied.
        frames = repeat(batch.frames, "clips t h w c -> (clips k) t h w c", k=batch.words.shape[0] // clips)
        video = model.embed_patches(frames, batch.visible)
        text = model.embed_words(batch.words)

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
