"""The step as the authors' released code computes it, to compare with: the same parameters, the same losses.

Written from the description of that code and not from the code: the encoder runs for the joint, the video-only and the
text-only pass, and for matching over all true and all wrong pairs; each time all patches of the clips are embedded and
nine tenths of them thrown away; attention writes its matrix out; every word of the caption gets logits. Two things are
ours so that the losses are the same: mean pooling leaves padding out, and dropout is best switched off (each pass draws
its own here). The tokenizer, which runs inside their step, is left out.

Dimensions: as in model/simvtp.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from timm.layers.attention import Attention
from torch import Tensor, nn

from simvtp_ds.config import ObjectiveConfig
from simvtp_ds.data.augment import PIXEL_MEAN, PIXEL_STD
from simvtp_ds.model.blocks import mean_joint, mean_video, mean_words
from simvtp_ds.model.simvtp import Passes, SimVTP
from simvtp_ds.objectives.contrastive import local_contrast
from simvtp_ds.objectives.matching import match_loss
from simvtp_ds.objectives.pixels import pixel_loss, pixel_target
from simvtp_ds.types import Batch, Losses

NOT_SCORED = -100


class ReleasedTask(nn.Module):
    """The four objectives in five passes.

    Args:
        model: The model to train; its attention is switched to the plain form.
        objectives: Weights of the losses; the contrast is that of this rank, as theirs is.
    """

    def __init__(self, model: SimVTP, objectives: ObjectiveConfig):
        super().__init__()
        self.model = model
        self.objectives = objectives
        for module in model.modules():
            if isinstance(module, Attention):
                module.fused_attn = False

    def forward(self, batch: Batch) -> Losses:
        """The losses of a batch with one view a clip."""
        model, words_seen = self.model, batch.word_mask
        scaled = batch.frames.float() / 255
        mean, std = (scaled.new_tensor(values) for values in (PIXEL_MEAN, PIXEL_STD))
        clips = rearrange((scaled - mean) / std, "b t h w c -> b c t h w")

        joint_video, joint_text = model.encode_joint_tokens(
            self._visible(clips, batch.visible), model.embed_words(batch.words), words_seen
        )
        video = model.encode_video_tokens(self._visible(clips, batch.visible))
        text = model.encode_text_tokens(model.embed_words(batch.words), words_seen)
        pairs = torch.cat([torch.arange(len(clips), device=clips.device), batch.negative])
        seen_twice = repeat(words_seen, "b l -> (pair b) l", pair=2)
        pair_video, pair_text = model.encode_joint_tokens(
            self._visible(clips[pairs], batch.visible[pairs]),
            model.embed_words(repeat(batch.words, "b l -> (pair b) l", pair=2)),
            seen_twice,
        )

        rebuilt = model.decode_pixels(joint_video, batch.visible, batch.hidden)
        mvm = pixel_loss(rebuilt, self._target(rearrange(clips, "b c t h w -> b t h w c") * std + mean, batch.hidden))
        labels = torch.full_like(batch.words, NOT_SCORED).flatten()
        labels[batch.hidden_words] = batch.hidden_word_ids
        logits = rearrange(model.word_logits(joint_text), "b l v -> (b l) v")
        mlm = F.cross_entropy(logits.float(), labels, ignore_index=NOT_SCORED)
        temperature = self.objectives.contrastive.temperature
        vtc = local_contrast(mean_video(video), mean_words(text, words_seen), temperature, batch.video_ids)
        pooled = mean_joint(pair_video, pair_text, seen_twice)
        vtm = match_loss(*model.match_head(pooled.to(pair_video.dtype)).chunk(2))

        weight = self.objectives
        total = weight.mvm * mvm + weight.mlm * mlm + weight.vtc * vtc + weight.vtm * vtm
        return Losses(total, mvm.detach(), mlm.detach(), vtc.detach(), vtm.detach())

    def _visible(self, clips: Tensor, visible: Tensor) -> Tensor:
        """float32 [B, C, T, H, W] to the tokens int64 [B, Nv] of all that are embedded: [B, Nv, D]."""
        config, patches = self.model.config, self.model.patches
        kernel = config.tubelet_size, config.patch_size, config.patch_size
        weight = rearrange(patches.weight, "d (c pt ph pw) -> d c pt ph pw", pt=kernel[0], ph=kernel[1], pw=kernel[2])
        tokens = F.conv3d(clips.to(weight.dtype), weight, patches.bias, stride=kernel)
        every = repeat(torch.arange(tokens[0, 0].numel(), device=clips.device), "n -> b n", b=len(clips))
        tokens = self.model.positions(rearrange(tokens, "b d t h w -> b (t h w) d"), every)
        return _chosen(tokens, visible)

    def _target(self, clips: Tensor, hidden: Tensor) -> Tensor:
        """float32 [B, T, H, W, C] in [0, 1] to the normalised patches at int64 [B, Nh]: float32 [B, Nh, P]."""
        config = self.model.config
        patches = rearrange(
            clips,
            "b (t pt) (h ph) (w pw) c -> b (t h w) (pt ph pw) c",
            pt=config.tubelet_size,
            ph=config.patch_size,
            pw=config.patch_size,
        )
        return _chosen(pixel_target(255 * patches), hidden)


def _chosen(tokens: Tensor, index: Tensor) -> Tensor:
    """[B, N, D] at int64 [B, K]: [B, K, D]."""
    return tokens.gather(1, repeat(index, "b k -> b k d", d=tokens.shape[2]))


def one_by_one(model: SimVTP) -> SimVTP:
    """`model` with its passes in four calls of the encoder in place of one, to measure which is faster."""

    def encode_passes(video: Tensor, text: Tensor, word_mask: Tensor, negative: Tensor) -> Passes:
        return Passes(
            *model.encode_joint_tokens(video, text, word_mask),
            *model.encode_joint_tokens(video[negative], text, word_mask),
            model.encode_video_tokens(video),
            model.encode_text_tokens(text, word_mask),
        )

    model.encode_passes = encode_passes
    return model
