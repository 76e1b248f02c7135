"""SimVTP for pre-training: one encoder for video, text and both, and a small decoder that rebuilds hidden pixels.

Dimensions: B clips, T frames, N = Nv + Nh tokens of a clip, L words, D width, V vocabulary,
P = tubelet * patch * patch * 3 values of a patch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from timm.layers.norm import LayerNorm
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from simvtp_ds.config import ModelConfig
from simvtp_ds.model.blocks import (
    INITIAL_STD,
    Blocks,
    Segments,
    WordEmbedding,
    initialise,
    mean_joint,
    mean_video,
    mean_words,
    see_both,
)
from simvtp_ds.model.patches import PatchEmbedding, PositionTable, gather_patches, token_grid


class Encoder(nn.Module):
    """Blocks and a final norm."""

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.blocks = Blocks(width, depth, heads, mlp_ratio)
        self.norm = LayerNorm(width, eps=1e-6)

    def forward(self, tokens: Tensor, attend: Tensor | Segments | None = None) -> Tensor:
        """[B, N, D] to [B, N, D]; `attend` as in `Blocks`."""
        return self.norm(self.blocks(tokens, attend))


class PixelDecoder(nn.Module):
    """Rebuilds hidden patches from visible tokens: visible tokens first, then mask tokens, each plus its position."""

    def __init__(self, config: ModelConfig, num_tokens: int, patch_values: int):
        super().__init__()
        width = config.decoder_width
        self.project = nn.Linear(config.width, width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.positions = PositionTable(num_tokens, width)
        self.blocks = Blocks(width, config.decoder_depth, config.decoder_heads, config.mlp_ratio)
        self.norm = LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, patch_values)

    def forward(self, video_out: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """[B, Nv, D] of the encoder, int64 [B, Nv] and [B, Nh] to the hidden patches [B, Nh, P]."""
        seen = self.positions(self.project(video_out), visible)
        masks = repeat(self.mask_token, "d -> b n d", b=hidden.shape[0], n=hidden.shape[1])
        unseen = self.positions(masks.to(seen.dtype), hidden)
        out = self.blocks(torch.cat([seen, unseen], dim=1))
        return self.head(self.norm(out[:, visible.shape[1] :]))


class Passes(NamedTuple):
    """What the passes of a step through the encoder give, [B, Nv, D] for video and [B, L, D] for words."""

    joint_video: Tensor  # clip and caption together
    joint_text: Tensor
    wrong_video: Tensor  # another clip and the caption together
    wrong_text: Tensor
    video: Tensor  # each by itself
    text: Tensor


def segments_of_passes(word_mask: Tensor, video_tokens: int) -> Segments:
    """The rows of `SimVTP.encode_passes` as segments; padding (False in bool [B, L]), at the ends, is one of its own.

    Nothing waits for the device: how many segments there are does not depend on the words.
    """
    places = word_mask.shape[1]
    words = word_mask.sum(dim=1)
    video = torch.full_like(words, video_tokens)
    together = torch.stack([video + words, places - words], dim=1).flatten()
    apart = torch.stack([video, words, places - words], dim=1).flatten()
    lengths = torch.cat([together, together, apart])
    return Segments(F.pad(lengths.cumsum(0), (1, 0)).int(), video_tokens + places)


class SimVTP(nn.Module):
    """The pre-training model. It has no `forward` of its own: objectives/pretrain.py says which passes make a step.

    Args:
        config: Sizes of the model.
        num_frames: Frames of a clip (T).
        image_size: Height and width of a clip, in pixels.
        vocab_size: Words of the tokenizer (V).
        pad_id: The tokenizer's id of [PAD]: 0 in every BERT vocabulary.

    Attributes:
        varlen: Attention of a step's passes over segments in place of a mask: same numbers, no work for what a mask
            hides, CUDA in half precision only.
    """

    def __init__(self, config: ModelConfig, num_frames: int, image_size: int, vocab_size: int, pad_id: int = 0):
        super().__init__()
        self.config = config
        self.varlen = False
        self.grid = token_grid(num_frames, image_size, config.tubelet_size, config.patch_size)
        num_tokens = self.grid[0] * self.grid[1] * self.grid[2]

        self.patches = PatchEmbedding(config.tubelet_size, config.patch_size, config.width)
        self.positions = PositionTable(num_tokens, config.width)
        self.words = WordEmbedding(vocab_size, config.width, config.text_positions, config.text_dropout, pad_id)
        self.encoder = Encoder(config.width, config.depth, config.heads, config.mlp_ratio)
        self.decoder = PixelDecoder(config, num_tokens, self.patches.in_features)
        self.word_head = nn.Linear(config.width, vocab_size)
        self.match_head = nn.Linear(config.width, 2)

        initialise(self)
        trunc_normal_(self.decoder.mask_token, std=INITIAL_STD, a=-INITIAL_STD, b=INITIAL_STD)

    # --- from a batch to tokens

    def embed_patches(self, frames: Tensor, index: Tensor) -> Tensor:
        """Tokens of uint8 [B, T, H, W, C] at int64 [B, K], positions added: [B, K, D]."""
        patches = gather_patches(frames, index, self.config.tubelet_size, self.config.patch_size)
        return self.positions(self.patches(patches), index)

    def embed_words(self, words: Tensor) -> Tensor:
        """Tokens of int64 [B, L], positions added, after dropout: [B, L, D]."""
        return self.words(words)

    # --- one pass of the encoder over tokens

    def encode_video_tokens(self, video: Tensor) -> Tensor:
        """[B, Nv, D] to [B, Nv, D]."""
        return self.encoder(video)

    def encode_text_tokens(self, text: Tensor, word_mask: Tensor) -> Tensor:
        """[B, L, D] and bool [B, L] (False: padding, looked at by nobody) to [B, L, D]."""
        return self.encoder(text, rearrange(word_mask, "b l -> b 1 l"))

    def encode_joint_tokens(self, video: Tensor, text: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, Nv, D], [B, L, D] and bool [B, L] to ([B, Nv, D], [B, L, D]), each looking at both."""
        out = self.encoder(torch.cat([video, text], dim=1), see_both(video, word_mask))
        return out[:, : video.shape[1]], out[:, video.shape[1] :]

    def encode_passes(self, video: Tensor, text: Tensor, word_mask: Tensor, negative: Tensor) -> Passes:
        """All passes of a pre-training step in one call of the encoder, over 3 B rows of the same length.

        In the third of the rows a clip and its caption stand side by side and do not look at each other. So the
        encoder's weights are read (under ZeRO-3: gathered) once a step, and its products are large.

        What stands on padding is undefined.

        Args:
            video: Visible tokens [B, Nv, D].
            text: Words [B, L, D].
            word_mask: bool [B, L], False on padding.
            negative: int64 [B], the clip that each caption is joined with in the wrong pair.
        """
        joint, wrong = torch.cat([video, text], dim=1), torch.cat([video[negative], text], dim=1)
        if self.varlen:
            attend = segments_of_passes(word_mask, video.shape[1])
        else:
            is_text = torch.arange(joint.shape[1], device=video.device) >= video.shape[1]
            seen = see_both(video, word_mask)
            apart = seen & (is_text[:, None] == is_text)
            attend = torch.cat([seen.expand_as(apart), seen.expand_as(apart), apart])
        out = self.encoder(torch.cat([joint, wrong, joint]), attend)
        out = rearrange(out, "(passes b) n d -> passes b n d", passes=3)
        return Passes(*(part for row in out for part in row.split([video.shape[1], text.shape[1]], dim=1)))

    # --- the same from bytes and word ids

    def encode_video(self, frames: Tensor, visible: Tensor) -> Tensor:
        """uint8 [B, T, H, W, C] at int64 [B, Nv] to [B, Nv, D]."""
        return self.encode_video_tokens(self.embed_patches(frames, visible))

    def encode_text(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """int64 [B, L] and bool [B, L] to [B, L, D]."""
        return self.encode_text_tokens(self.embed_words(words), word_mask)

    def encode_joint(self, frames: Tensor, visible: Tensor, words: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Video and text in one pass: ([B, Nv, D], [B, L, D])."""
        return self.encode_joint_tokens(self.embed_patches(frames, visible), self.embed_words(words), word_mask)

    # --- heads

    def decode_pixels(self, video_out: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """The hidden patches, normalised as the target is, (pt ph pw c): [B, Nh, P]."""
        return self.decoder(video_out, visible, hidden)

    def word_logits(self, text_out: Tensor) -> Tensor:
        """Outputs of the joint pass [..., D] to [..., V]; give it the hidden words only, the rest is never scored."""
        return self.word_head(text_out)

    def match(self, video_out: Tensor, text_out: Tensor, word_mask: Tensor) -> Tensor:
        """Outputs of a joint pass to [B, 2]: logits of (another video's caption, this video's caption)."""
        pooled = mean_joint(video_out, text_out, word_mask)
        return self.match_head(pooled.to(video_out.dtype))

    # --- evaluation: every token visible

    def embed_video(self, frames: Tensor) -> Tensor:
        """One unit vector a clip from all its tokens, uint8 [B, T, H, W, C] to float32 [B, D]."""
        return F.normalize(mean_video(self.encode_video(frames, self._every_token(frames))), dim=-1)

    def embed_text(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """One unit vector a caption, padding left out of the mean: float32 [B, D]."""
        return F.normalize(mean_words(self.encode_text(words, word_mask), word_mask), dim=-1)

    def match_pairs(self, frames: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Clip b with caption b, in one pass: logits [B, 2] of (another video's caption, this video's caption)."""
        video_out, text_out = self.encode_joint(frames, self._every_token(frames), words, word_mask)
        return self.match(video_out, text_out, word_mask)

    def _every_token(self, frames: Tensor) -> Tensor:
        """The indices of all tokens of each clip, int64 [B, N]."""
        num_tokens = self.grid[0] * self.grid[1] * self.grid[2]
        return repeat(torch.arange(num_tokens, device=frames.device), "n -> b n", b=frames.shape[0])


def use_segments(task: nn.Module) -> None:
    """Let the pre-training model in `task` attend over segments in place of a mask."""
    for module in task.modules():
        if isinstance(module, SimVTP):
            module.varlen = True
