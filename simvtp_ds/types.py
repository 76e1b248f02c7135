"""The tensors that travel through the engine, each named once.

Dimensions: B clips (pre-training: masked views, k of each clip), T frames, H and W pixels, C = 3 colours, N = Nv + Nh
tokens of a clip, L words of a caption (padded to the longest of the batch), K hidden words of the whole batch.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One micro batch of pre-training on one rank. A NamedTuple, because ZeRO-3 looks into tuples for tensors.

    Frames stay bytes until they are on the device; masks are index tensors, so nothing has to wait for the device.
    Row b of everything but the frames is a view of clip b // k: the views of a clip stand side by side.
    """

    frames: Tensor  # uint8 [B / k, T, H, W, C], RGB
    visible: Tensor  # int64 [B, Nv], ascending token indices in (t h w) order that the encoder sees
    hidden: Tensor  # int64 [B, Nh], ascending token indices to be rebuilt (masks.rebuild_half: not all the others)
    words: Tensor  # int64 [B, L], token ids with [CLS] and [SEP]; hidden words already replaced by [MASK]
    word_mask: Tensor  # bool [B, L], True where there is a word, False on padding
    hidden_words: Tensor  # int64 [K], flat positions b * L + l of the hidden words
    hidden_word_ids: Tensor  # int64 [K], the token ids that stood there
    negative: Tensor  # int64 [B], index in this batch of the video that does not belong to caption b
    video_ids: Tensor  # int64 [B], a number for each video, the same on every rank: equal numbers are no negatives


class RetrievalBatch(NamedTuple):
    """One micro batch of fine-tuning on one rank: whole clips, whole captions."""

    frames: Tensor  # uint8 [B, T, H, W, C], RGB
    words: Tensor  # int64 [B, L], token ids with [CLS] and [SEP]
    word_mask: Tensor  # bool [B, L], True where there is a word, False on padding
    video_ids: Tensor  # int64 [B], a number for each video, the same on every rank: equal numbers are no negatives


AnyBatch = TypeVar("AnyBatch", Batch, RetrievalBatch)


def to_device(batch: AnyBatch, device: torch.device | str) -> AnyBatch:
    """The same batch on `device`; the copy does not block where the batch is in page-locked memory."""
    for tensor in batch:
        if tensor.is_cuda:  # decoded there in another stream: the memory is in use until this one is done with it
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))


def pinned(batch: AnyBatch) -> AnyBatch:
    """The same batch, what is not on a GPU in page-locked host memory, where there is a GPU to copy it to."""
    if not torch.cuda.is_available():
        return batch
    return type(batch)(*(tensor if tensor.is_cuda else tensor.pin_memory() for tensor in batch))


class Losses(NamedTuple):
    """Scalars, float32 []; `total` carries the graph, the four parts are detached and unweighted."""

    total: Tensor
    mvm: Tensor  # masked video modelling
    mlm: Tensor  # masked language modelling
    vtc: Tensor  # video-text contrast
    vtm: Tensor  # video-text matching


class RetrievalLosses(NamedTuple):
    """The same for fine-tuning."""

    total: Tensor
    vtc: Tensor
    vtm: Tensor  # 0 where matching is not trained


AnyLosses: TypeAlias = Losses | RetrievalLosses
