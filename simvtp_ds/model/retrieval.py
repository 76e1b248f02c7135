"""Two towers for fine-tuning: the pre-trained encoder, once for video and once for text.

The pre-training model's final norm is gone; `fc_norm` after the mean pool takes its place.

Dimensions: B clips, T frames, N tokens of a clip, L words of a caption, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from timm.layers.norm import LayerNorm
from torch import Tensor, nn

from simvtp_ds.config import ModelConfig
from simvtp_ds.model.blocks import Blocks, WordEmbedding, initialise, mean_joint, mean_video, mean_words, see_both
from simvtp_ds.model.patches import PatchEmbedding, PositionTable, gather_patches, token_grid


class VideoTower(nn.Module):
    """Clips to tokens, and an encoder."""

    def __init__(self, config: ModelConfig, num_frames: int, image_size: int, drop_path: float):
        super().__init__()
        self.config = config
        self.grid = token_grid(num_frames, image_size, config.tubelet_size, config.patch_size)
        self.patches = PatchEmbedding(config.tubelet_size, config.patch_size, config.width)
        self.positions = PositionTable(self.grid[0] * self.grid[1] * self.grid[2], config.width)
        self.blocks = Blocks(config.width, config.depth, config.heads, config.mlp_ratio, drop_path)
        self.fc_norm = LayerNorm(config.width, eps=1e-6)

    def embed(self, frames: Tensor) -> Tensor:
        """Every token of uint8 [B, T, H, W, C], positions added: [B, N, D]."""
        every = torch.arange(self.grid[0] * self.grid[1] * self.grid[2], device=frames.device)
        index = repeat(every, "n -> b n", b=frames.shape[0])
        patches = gather_patches(frames, index, self.config.tubelet_size, self.config.patch_size)
        return self.positions(self.patches(patches), index)


class TextTower(nn.Module):
    """Captions to tokens, and an encoder."""

    def __init__(self, config: ModelConfig, vocab_size: int, drop_path: float, pad_id: int):
        super().__init__()
        self.words = WordEmbedding(vocab_size, config.width, config.text_positions, config.text_dropout, pad_id)
        self.blocks = Blocks(config.width, config.depth, config.heads, config.mlp_ratio, drop_path)
        self.fc_norm = LayerNorm(config.width, eps=1e-6)


class SharedTextTower(nn.Module):
    """Captions to tokens; the video tower's encoder reads them.

    The encoder is not registered a second time here: ZeRO-3 would hook it twice, and a state dict would hold it twice.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, pad_id: int):
        super().__init__()
        self.words = WordEmbedding(vocab_size, config.width, config.text_positions, config.text_dropout, pad_id)


class TwoTower(nn.Module):
    """Text-to-video retrieval.

    Args:
        config: Sizes of each tower; the decoder's are not used.
        num_frames: Frames of a clip (T).
        image_size: Height and width of a clip, in pixels.
        vocab_size: Words of the tokenizer (V).
        shared: One set of blocks and one `fc_norm` for both towers; parameters and state dict name them once, under
            `video`.
        match: Build the matching head (`match_norm`, `match_head`): the pre-training model's, over the video tower.
        drop_path: Stochastic depth of the last block; the first has none.
        pad_id: The tokenizer's id of [PAD]: 0 in every BERT vocabulary.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_frames: int,
        image_size: int,
        vocab_size: int,
        *,
        shared: bool = False,
        match: bool = False,
        drop_path: float = 0.0,
        pad_id: int = 0,
    ):
        super().__init__()
        self.video = VideoTower(config, num_frames, image_size, drop_path)
        self.text: TextTower | SharedTextTower = (
            SharedTextTower(config, vocab_size, pad_id) if shared else TextTower(config, vocab_size, drop_path, pad_id)
        )
        self.match_norm = LayerNorm(config.width, eps=1e-6) if match else None
        self.match_head = nn.Linear(config.width, 2) if match else None
        initialise(self)

    # --- from bytes and word ids to tokens

    def embed_patches(self, frames: Tensor) -> Tensor:
        """Every token of uint8 [B, T, H, W, C], positions added: [B, N, D]."""
        return self.video.embed(frames)

    def embed_words(self, words: Tensor) -> Tensor:
        """Tokens of int64 [B, L], positions added, after dropout: [B, L, D]."""
        return self.text.words(words)

    # --- one pass over tokens

    def encode_video_tokens(self, video: Tensor) -> Tensor:
        """[B, N, D] to [B, D], pooled and normed by `fc_norm`, not of unit length."""
        tokens = self.video.blocks(video)
        return self.video.fc_norm(mean_video(tokens).to(tokens.dtype))

    def encode_text_tokens(self, text: Tensor, word_mask: Tensor) -> Tensor:
        """[B, L, D] and bool [B, L] (False: padding) to [B, D], pooled and normed, not of unit length."""
        encoder = self.video if isinstance(self.text, SharedTextTower) else self.text
        tokens = encoder.blocks(text, rearrange(word_mask, "b l -> b 1 l"))
        return encoder.fc_norm(mean_words(tokens, word_mask).to(tokens.dtype))

    def match_tokens(self, video: Tensor, text: Tensor, word_mask: Tensor) -> Tensor:
        """The joint pass, through the video tower: [B, N, D], [B, L, D] and bool [B, L] to logits [B, 2].

        Raises:
            ValueError: the model was built without a matching head.
        """
        if self.match_norm is None or self.match_head is None:
            raise ValueError("these towers have no matching head: fine-tune with objectives.vtm above 0 to get one")
        tokens = self.match_norm(self.video.blocks(torch.cat([video, text], dim=1), see_both(video, word_mask)))
        pooled = mean_joint(tokens[:, : video.shape[1]], tokens[:, video.shape[1] :], word_mask)
        return self.match_head(pooled.to(tokens.dtype))

    # --- the same from bytes and word ids

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, C] to [B, D], pooled and normed by `fc_norm`, not of unit length."""
        return self.encode_video_tokens(self.embed_patches(frames))

    def encode_text(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """int64 [B, L] and bool [B, L] to [B, D], pooled and normed by `fc_norm`, not of unit length."""
        return self.encode_text_tokens(self.embed_words(words), word_mask)

    # --- evaluation

    def embed_video(self, frames: Tensor) -> Tensor:
        """One unit vector a clip, uint8 [B, T, H, W, C] to float32 [B, D]."""
        return F.normalize(self.encode_video(frames).float(), dim=-1)

    def embed_text(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """One unit vector a caption, int64 [B, L] and bool [B, L] to float32 [B, D]."""
        return F.normalize(self.encode_text(words, word_mask).float(), dim=-1)

    def match_pairs(self, frames: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Clip b with caption b, in one pass: logits [B, 2] of (another video's caption, this video's caption).

        Raises:
            ValueError: the model was built without a matching head.
        """
        return self.match_tokens(self.embed_patches(frames), self.embed_words(words), word_mask)
