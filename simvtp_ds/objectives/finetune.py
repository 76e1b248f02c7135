"""Fine-tuning for text-to-video retrieval: video-text contrast of two towers and nothing else."""

from __future__ import annotations

from torch import Tensor, nn

from simvtp_ds.config import ContrastiveConfig
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.objectives.contrastive import global_contrast, local_contrast


class FinetuneTask(nn.Module):
    """Two towers and their contrast, as one module for DeepSpeed.

    Args:
        model: The towers to train.
        contrastive: Temperature and scope of the contrast (SimVTP: local).
    """

    def __init__(self, model: TwoTower, contrastive: ContrastiveConfig):
        super().__init__()
        self.model = model
        self.temperature = contrastive.temperature
        self.contrast = global_contrast if contrastive.scope == "global" else local_contrast

    def forward(self, frames: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """uint8 [B, T, H, W, C], int64 [B, L] and bool [B, L] (False: padding) to the loss, float32 []."""
        video, text = self.model.encode_video(frames), self.model.encode_text(words, word_mask)
        return self.contrast(video, text, self.temperature)
