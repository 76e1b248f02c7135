"""Transformer blocks: timm's, with VideoMAE's attention bias, and the stacks and poolings made of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.attention import Attention as TimmAttention
from timm.layers.fast_norm import has_apex, set_fast_norm
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings

TEXT_NORM_EPS = 1e-12  # BERT's
INITIAL_STD = 0.02


def use_fast_norm_if_available() -> bool:
    """Switch timm to apex's fused LayerNorm if apex and CUDA are there, and say whether they were.

    To be called before a model is built: each norm notes the switch when it is made.
    """
    available = has_apex and torch.cuda.is_available()
    set_fast_norm(available)
    return available


class QueryKeyValue(nn.Linear):
    """Queries, keys and values in one projection; their biases are learnt but for the key bias, which is 0 (VideoMAE).

    The biases live here and not in the attention around it: ZeRO-3 gathers the parameters of the module it calls.
    """

    def __init__(self, width: int):
        super().__init__(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] to [B, N, 3 D]."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(tokens, self.weight, bias)


class Segments(NamedTuple):
    """Rows laid end to end and cut into segments whose tokens look at one another and at nobody else."""

    ends: Tensor  # int32 [S + 1], 0 and where each segment ends; one may be empty
    longest: int  # tokens that no segment exceeds


class Attention(TimmAttention):
    """timm's attention (fused where torch can) over `QueryKeyValue`."""

    def __init__(self, dim: int, **options: Any):
        super().__init__(dim, **options)
        self.qkv = QueryKeyValue(dim)

    def forward(self, x: Tensor, attn_mask: Tensor | Segments | None = None, is_causal: bool = False) -> Tensor:
        """[B, N, D] to [B, N, D]; `Segments` are for CUDA in half precision (torch's varlen_attn)."""
        if not isinstance(attn_mask, Segments):
            return super().forward(x, attn_mask, is_causal)
        ends, longest = attn_mask
        queries, keys, values = rearrange(
            self.qkv(x), "b n (three heads d) -> three (b n) heads d", three=3, heads=self.num_heads
        )
        out = varlen_attn(queries, keys, values, ends, ends, longest, longest)
        return self.proj(rearrange(out, "(b n) heads d -> b n (heads d)", b=x.shape[0]))


class Blocks(nn.Module):
    """A stack of pre-norm blocks: LayerNorm eps 1e-6, GELU, stochastic depth that grows linearly to `drop_path`.

    Attributes:
        recompute: Keep only each block's input for the backward pass and run the block again there (activation
            checkpointing): the same numbers for less memory and a third more time.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: float, drop_path: float = 0.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split into {heads} attention heads: change one of the two")
        self.layers = nn.ModuleList(
            Block(
                width,
                heads,
                mlp_ratio,
                attn_layer=Attention,
                norm_layer=LayerNorm,
                drop_path=drop_path * i / max(depth - 1, 1),
            )
            for i in range(depth)
        )
        self.recompute = False
        self.has_dropout = drop_path > 0

    def forward(self, tokens: Tensor, attend: Tensor | Segments | None = None) -> Tensor:
        """[B, N, D] to [B, N, D]; `attend` bool [B, Q, N], True where token q may look at token n, None: everywhere.

        Q is N, or 1 where all tokens look at the same ones. Or the segments of the B rows.
        """
        mask = rearrange(attend, "b q n -> b 1 q n") if isinstance(attend, Tensor) else attend
        for layer in self.layers:
            if self.recompute and self.training:
                tokens = checkpoint(
                    layer, tokens, attn_mask=mask, use_reentrant=False, preserve_rng_state=self.has_dropout
                )
            else:
                tokens = layer(tokens, attn_mask=mask)
        return tokens


def recompute_blocks(model: nn.Module) -> None:
    """Let every stack of `model` keep only the inputs of its blocks (activation checkpointing)."""
    for module in model.modules():
        if isinstance(module, Blocks):
            module.recompute = True


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """Compile the blocks of `model` one by one, when they are first used: those of a stack share the compiled code.

    The names of parameters stay as they are, and what stands between the blocks runs as before.
    """
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(**options)


def see_both(video: Tensor, word_mask: Tensor) -> Tensor:
    """Who a joint pass over video tokens [B, N, D] and words (bool [B, L], False: padding) looks at: [B, 1, N + L]."""
    return rearrange(torch.cat([word_mask.new_ones(video.shape[:2]), word_mask], dim=1), "b n -> b 1 n")


class WordEmbedding(nn.Module):
    """BERT's embeddings: word + position + type 0, LayerNorm, dropout.

    Args:
        vocab_size: Words of the tokenizer (V).
        width: Width of the encoder (D).
        positions: Rows of the position table; a longer caption is refused.
        dropout: Dropout after the LayerNorm.
        pad_id: The tokenizer's id of [PAD] (0 in BERT's vocabularies); its row stays zero and gets no gradient.
    """

    def __init__(self, vocab_size: int, width: int, positions: int, dropout: float, pad_id: int):
        super().__init__()
        self.positions = positions
        self.embeddings = BertEmbeddings(
            BertConfig(
                vocab_size=vocab_size,
                hidden_size=width,
                max_position_embeddings=positions,
                type_vocab_size=2,
                layer_norm_eps=TEXT_NORM_EPS,
                hidden_dropout_prob=dropout,
                pad_token_id=pad_id,
            )
        )

    def forward(self, words: Tensor) -> Tensor:
        """int64 [B, L] to [B, L, D]."""
        if words.shape[1] > self.positions:
            raise ValueError(
                f"captions of {words.shape[1]} words do not fit a table of {self.positions} positions: "
                f"lower data.max_words or raise model.text_positions"
            )
        return self.embeddings(words)


def mean_video(tokens: Tensor) -> Tensor:
    """Mean over the tokens [B, N, D], in float32: [B, D]."""
    return tokens.float().mean(dim=1)


def mean_words(tokens: Tensor, word_mask: Tensor) -> Tensor:
    """Mean over the words of [B, L, D], padding (False in bool [B, L]) left out, in float32: [B, D]."""
    weight = rearrange(word_mask, "b l -> b l 1").float()
    return (tokens.float() * weight).sum(dim=1) / weight.sum(dim=1)


def mean_joint(video: Tensor, text: Tensor, word_mask: Tensor) -> Tensor:
    """Mean over video tokens [B, N, D] and words [B, L, D] together, padding left out, in float32: [B, D]."""
    weight = rearrange(word_mask, "b l -> b l 1").float()
    total = video.float().sum(dim=1) + (text.float() * weight).sum(dim=1)
    return total / (video.shape[1] + weight.sum(dim=1))


def initialise(model: nn.Module) -> None:
    """Initial weights of VideoMAE (Xavier for linear layers, zero biases) and BERT (normal 0.02 for embeddings)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=INITIAL_STD)
            if module.padding_idx is not None:
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()
