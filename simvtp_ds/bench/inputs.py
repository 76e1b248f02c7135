"""A micro batch and a model of a configuration without any file: what a bench trains on."""

from __future__ import annotations

import numpy as np
import torch

from simvtp_ds.config import PretrainConfig
from simvtp_ds.data.masks import rebuilt_half, tube_masks
from simvtp_ds.data.order import stream
from simvtp_ds.model.patches import token_grid
from simvtp_ds.model.simvtp import SimVTP
from simvtp_ds.objectives.pretrain import PretrainTask
from simvtp_ds.types import Batch

VOCABULARY = 30522  # BERT's
MASK_ID = 103
FIRST_WORD = 1000  # ids below it are [PAD], [CLS], [SEP], [MASK] and unused ones
CPU = torch.device("cpu")


def build_task(config: PretrainConfig, device: torch.device | str = CPU) -> PretrainTask:
    """The task of a configuration with initial weights; on "meta" it has shapes and no memory."""
    data = config.data
    with torch.device(device):
        model = SimVTP(config.model, data.num_frames, data.image_size, VOCABULARY)
    return PretrainTask(model, config.objectives)


def noise_batch(config: PretrainConfig, clips: int, words: int, seed: int = 0) -> Batch:
    """Clips of noise and captions of random words, masked as training masks them, on the CPU.

    Args:
        config: Sizes, masks and views.
        clips: Views of clips (B), the micro batch of the DeepSpeed JSON.
        words: Tokens of the longest caption, [CLS] and [SEP] included (L); the others have from a third of it to all.
        seed: Of the noise.
    """
    data, model, masks = config.data, config.model, config.masks
    rng = stream(seed, 0, "bench", "noise")
    grid = token_grid(data.num_frames, data.image_size, model.tubelet_size, model.patch_size)
    streams = [stream(seed, 0, f"bench {clip}", "tube") for clip in range(clips)]
    visible, hidden = tube_masks(streams, grid, masks.tube_ratio, CPU)
    if masks.rebuild_half:
        hidden = rebuilt_half(streams, hidden, grid)

    lengths = rng.integers(max(3, words // 3), words + 1, clips)
    lengths[0] = words
    place = np.arange(words)
    is_word = place < lengths[:, None]
    inner = (place > 0) & (place < lengths[:, None] - 1)  # neither [CLS] nor [SEP]
    ids = np.where(is_word, rng.integers(FIRST_WORD, VOCABULARY, (clips, words)), 0)
    chosen = inner & (rng.random((clips, words)) < masks.word_ratio)
    flat = np.flatnonzero(chosen)
    numbers = np.arange(clips)
    size = (clips // data.views, data.num_frames, data.image_size, data.image_size, 3)
    arrays = (
        np.where(chosen, MASK_ID, ids),
        is_word,
        flat,
        ids.reshape(-1)[flat],
        (numbers + data.views) % clips,
        numbers // data.views,
    )
    frames = torch.from_numpy(rng.integers(0, 256, size, dtype=np.uint8))
    return Batch(frames, visible, hidden, *(torch.from_numpy(array) for array in arrays))
