"""A tiny model and batch for tests of model and objectives: 4 frames of 16 x 16, 32 tokens, 16 of them visible."""

from __future__ import annotations

import torch

from simvtp_ds.config import ModelConfig
from simvtp_ds.model.simvtp import SimVTP
from simvtp_ds.types import Batch

TINY = ModelConfig(
    width=24,
    depth=2,
    heads=3,
    decoder_width=12,
    decoder_depth=1,
    decoder_heads=2,
    patch_size=4,
    tubelet_size=2,
    text_positions=20,
    text_dropout=0.0,
)
NUM_FRAMES, IMAGE_SIZE, VOCABULARY = 4, 16, 50
TOKENS = 32
MASK_ID = 4


def tiny_model(seed: int = 0) -> SimVTP:
    """SimVTP with every parameter random (zero biases would hide a bias that is not used)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SimVTP(TINY, NUM_FRAMES, IMAGE_SIZE, VOCABULARY)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.endswith("word_embeddings.weight"):
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def tiny_batch(clips: int = 4, padded: bool = True, seed: int = 1) -> Batch:
    """Random clips with half the tokens hidden (differently in each clip) and captions of 8 words, some padded."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(clips)])
    words = torch.randint(5, VOCABULARY, (clips, 8), generator=generator)
    lengths = torch.tensor([8 - (3 * b) % 5 if padded else 8 for b in range(clips)])
    word_mask = torch.arange(8) < lengths[:, None]
    words = torch.where(word_mask, words, 0)
    chosen = (torch.rand(clips, 8, generator=generator) < 0.6) & word_mask
    flat = chosen.flatten().nonzero()[:, 0]
    return Batch(
        frames=torch.randint(0, 256, (clips, NUM_FRAMES, 16, 16, 3), dtype=torch.uint8, generator=generator),
        visible=order[:, :16].sort(dim=1).values,
        hidden=order[:, 16:].sort(dim=1).values,
        words=torch.where(chosen, MASK_ID, words),
        word_mask=word_mask,
        hidden_words=flat,
        hidden_word_ids=words.flatten()[flat],
        negative=(torch.arange(clips) + 1) % clips,
        video_ids=torch.arange(clips),
    )
