"""Two towers for fine-tuning: the pre-trained encoder, copied, once for video and once for text.

The pre-training model's final norm is gone; `fc_norm` after the mean pool takes its place.
"""

from __future__ import annotations

import torch
from einops import repeat
from timm.layers.norm import LayerNorm
from torch import Tensor, nn

from simvtp_ds.config import ModelConfig
from simvtp_ds.model.blocks import Blocks, WordEmbedding, initialise, mean_video, mean_words
from simvtp_ds.model.patches import PatchEmbedding, PositionTable, gather_patches, token_grid


class VideoTower(nn.Module):
    """All tokens of a clip to one vector."""

    def __init__(self, config: ModelConfig, num_frames: int, image_size: int, drop_path: float):
        super().__init__()
        self.config = config
        self.grid = token_grid(num_frames, image_size, config.tubelet_size, config.patch_size)
        self.patches = PatchEmbedding(config.tubelet_size, config.patch_size, config.width)
        self.positions = PositionTable(self.grid[0] * self.grid[1] * self.grid[2], config.width)
        self.blocks = Blocks(config.width, config.depth, config.heads, config.mlp_ratio, drop_path)
        self.fc_norm = LayerNorm(config.width, eps=1e-6)

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, C] to [B, D]."""
        every = torch.arange(self.grid[0] * self.grid[1] * self.grid[2], device=frames.device)
        index = repeat(every, "n -> b n", b=frames.shape[0])
        patches = gather_patches(frames, index, self.config.tubelet_size, self.config.patch_size)
        tokens = self.blocks(self.positions(self.patches(patches), index))
        return self.fc_norm(mean_video(tokens).to(tokens.dtype))


class TextTower(nn.Module):
    """The words of a caption to one vector."""

    def __init__(self, config: ModelConfig, vocab_size: int, drop_path: float, pad_id: int):
        super().__init__()
        self.words = WordEmbedding(vocab_size, config.width, config.text_positions, config.text_dropout, pad_id)
        self.blocks = Blocks(config.width, config.depth, config.heads, config.mlp_ratio, drop_path)
        self.fc_norm = LayerNorm(config.width, eps=1e-6)

    def forward(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """int64 [B, L] and bool [B, L] (False: padding) to [B, D]."""
        tokens = self.blocks(self.words(words), word_mask)
        return self.fc_norm(mean_words(tokens, word_mask).to(tokens.dtype))


class TwoTower(nn.Module):
    """Text-to-video retrieval with untied encoders.

    Args:
        config: Sizes of each tower; the decoder's are not used.
        num_frames: Frames of a clip (T).
        image_size: Height and width of a clip, in pixels.
        vocab_size: Words of the tokenizer (V).
        drop_path: Stochastic depth of the last block; the first has none.
        pad_id: The tokenizer's id of [PAD]: 0 in every BERT vocabulary.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_frames: int,
        image_size: int,
        vocab_size: int,
        drop_path: float = 0.0,
        pad_id: int = 0,
    ):
        super().__init__()
        self.video = VideoTower(config, num_frames, image_size, drop_path)
        self.text = TextTower(config, vocab_size, drop_path, pad_id)
        initialise(self)

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, C] to [B, D], pooled and normed by `fc_norm`, not of unit length."""
        return self.video(frames)

    def encode_text(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """int64 [B, L] and bool [B, L] to [B, D], pooled and normed by `fc_norm`, not of unit length."""
        return self.text(words, word_mask)
