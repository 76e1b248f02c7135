"""Tiny towers and batches for tests of fine-tuning; sizes as in tiny.py."""

from __future__ import annotations

from typing import Any

import torch
from tiny import IMAGE_SIZE, NUM_FRAMES, TINY, VOCABULARY, tiny_batch

from simvtp_ds.config import ModelConfig
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.types import RetrievalBatch


def tiny_towers(config: ModelConfig = TINY, seed: int = 0, **options: Any) -> TwoTower:
    """Two towers with every parameter random (zero biases would hide a bias that is not used)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TwoTower(config, NUM_FRAMES, IMAGE_SIZE, VOCABULARY, **options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.endswith("word_embeddings.weight"):
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def retrieval_batch(clips: int, ids: list[int] | None = None) -> RetrievalBatch:
    """Random clips and captions, some padded; each clip a video of its own unless `ids` says otherwise."""
    batch = tiny_batch(clips)
    numbers = torch.arange(clips) if ids is None else torch.tensor(ids)
    return RetrievalBatch(batch.frames, batch.words, batch.word_mask, numbers)


def part(batch: RetrievalBatch, clips: slice) -> RetrievalBatch:
    """Some of its clips."""
    return RetrievalBatch(*(tensor[clips] for tensor in batch))
