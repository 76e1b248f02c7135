"""Fine-tuning for text-to-video retrieval as one module, because DeepSpeed wants one forward: L = L_vtc + L_vtm.

Dimensions: B clips of a micro batch, D width. Where a step has several micro batches, the contrast is over all of them
(whole_step.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from simvtp_ds.data_config import require
from simvtp_ds.finetune_config import RetrievalObjectiveConfig
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.objectives.contrastive import global_contrast, local_contrast
from simvtp_ds.objectives.matching import counted_match_loss, hardest_videos
from simvtp_ds.objectives.whole_step import CachedContrast, Features, contrast_gradients, handed_on
from simvtp_ds.types import RetrievalBatch, RetrievalLosses


class FinetuneTask(nn.Module):
    """Two towers, their contrast and their matching.

    Args:
        model: The towers to train.
        objectives: Weights of the losses and settings of the contrast (SimVTP: local contrast, no matching).

    Raises:
        ValueError: the weight of matching and the model's matching head do not go together.
    """

    def __init__(self, model: TwoTower, objectives: RetrievalObjectiveConfig):
        super().__init__()
        require(
            (objectives.vtm > 0) == (model.match_head is not None),
            f"objectives.vtm is {objectives.vtm} and the towers have {'a' if model.match_head else 'no'} matching "
            "head: build it where the weight is above 0, and only there (ZeRO needs a gradient for each parameter)",
        )
        self.model = model
        self.objectives = objectives
        self.scope = global_contrast if objectives.contrastive.scope == "global" else local_contrast
        self.contrasts_whole_step = True

    def forward(self, batch: RetrievalBatch, cached: CachedContrast | None = None) -> RetrievalLosses:
        """The losses of one micro batch on this rank; the mean over ranks is the loss of the global micro batch.

        Args:
            batch: The micro batch.
            cached: From `of_step`: the contrast is that of the whole step. None: of this micro batch.
        """
        video, text, features = self._encode(batch)
        vtc = self.contrast(features, batch.video_ids) if cached is None else handed_on(features, cached)
        total = self.objectives.vtc * vtc
        vtm = torch.zeros_like(vtc)
        if self.objectives.vtm:
            vtm = self._match(batch, video, text, features)
            total = total + self.objectives.vtm * vtm
        return RetrievalLosses(total, vtc.detach(), vtm.detach())

    @torch.no_grad()
    def features(self, batch: RetrievalBatch) -> Features:
        """What `forward` contrasts, without a graph."""
        return self._encode(batch)[2]

    def contrast(self, features: Features, video_ids: Tensor) -> Tensor:
        """L_vtc of this rank's clips, against those of this or of all ranks: float32 []."""
        return self.scope(features.video, features.text, self.objectives.contrastive.temperature, video_ids)

    def of_step(self, features: Sequence[Features], micro_batches: Sequence[RetrievalBatch]) -> list[CachedContrast]:
        """The contrast over all micro batches of a step, from the features of each; all ranks call it."""
        return contrast_gradients(self.contrast, features, [batch.video_ids for batch in micro_batches])

    def _encode(self, batch: RetrievalBatch) -> tuple[Tensor, Tensor, Features]:
        """Tokens of the clips [B, N, D] and of the captions [B, L, D], each embedded once, and their features."""
        model = self.model
        video, text = model.embed_patches(batch.frames), model.embed_words(batch.words)
        video_feature = model.encode_video_tokens(video)
        text_feature = model.encode_text_tokens(text, batch.word_mask)
        return video, text, Features(video_feature.float(), text_feature.float())

    def _match(self, batch: RetrievalBatch, video: Tensor, text: Tensor, features: Features) -> Tensor:
        """L_vtm: each caption with its video, and with the most similar other video of the micro batch."""
        require(
            video.shape[0] > 1,
            "video-text matching needs another video in the micro batch, and this one holds 1 clip: set "
            "train_micro_batch_size_per_gpu to 2 or more in the DeepSpeed JSON, or objectives.vtm to 0",
        )
        negative, counted = hardest_videos(features.video, features.text, batch.video_ids)
        true = self.model.match_tokens(video, text, batch.word_mask)
        false = self.model.match_tokens(video[negative], text, batch.word_mask)
        return counted_match_loss(true, false, counted)
