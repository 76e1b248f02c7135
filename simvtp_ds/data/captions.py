"""Captions as token ids, whole or with hidden words, and the video that does not belong to each caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simvtp_ds.data.order import stream

if TYPE_CHECKING:
    from simvtp_ds.data.text import Tokenizer

WIDTH_STEP = 8  # captions of a batch are padded to a multiple of this, so that few shapes occur


class Caption(NamedTuple):
    """One caption of L tokens."""

    words: np.ndarray  # int64 [L], hidden words replaced by [MASK]
    hidden: np.ndarray  # int64 [k], ascending positions of the hidden words
    hidden_ids: np.ndarray  # int64 [k], what stood there


class Captions(NamedTuple):
    """The captions of a micro batch, padded to L tokens; see `simvtp_ds.types.Batch`."""

    words: np.ndarray  # int64 [B, L]
    word_mask: np.ndarray  # bool [B, L]
    hidden_words: np.ndarray  # int64 [K], K may be 0
    hidden_word_ids: np.ndarray  # int64 [K]


def hide_words(rng: np.random.Generator, tokenizer: Tokenizer, caption: str, max_words: int, ratio: float) -> Caption:
    """Each word piece hidden with probability `ratio`, always by [MASK]; [CLS], [SEP] and [PAD] never.

    What was drawn stays, also when it hides every word or none (as the authors had it).
    """
    words = tokenizer.encode(caption, max_words)
    special = np.isin(words, [tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id])
    drawn = rng.random(len(words)) < ratio
    hidden = np.flatnonzero(drawn & ~special)
    masked = words.copy()
    masked[hidden] = tokenizer.mask_id
    return Caption(masked, hidden, words[hidden])


def hide_words_of_batch(
    streams: Sequence[np.random.Generator], captions: Sequence[str], tokenizer: Tokenizer, max_words: int, ratio: float
) -> Captions:
    """`hide_words` for each caption, drawn from its stream, then `collate`."""
    hidden = [
        hide_words(rng, tokenizer, caption, max_words, ratio) for rng, caption in zip(streams, captions, strict=True)
    ]
    return collate(hidden, tokenizer.pad_id, max_words)


def collate(captions: Sequence[Caption], pad_id: int, max_words: int) -> Captions:
    """Captions padded as `pad` does."""
    words, word_mask = pad([caption.words for caption in captions], pad_id, max_words)
    hidden = np.concatenate([row * words.shape[1] + caption.hidden for row, caption in enumerate(captions)])
    return Captions(words, word_mask, hidden, np.concatenate([caption.hidden_ids for caption in captions]))


def whole_captions(captions: Sequence[str], tokenizer: Tokenizer, max_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Captions with no word hidden: `words` int64 [B, L] and `word_mask` bool [B, L], False on padding."""
    return pad([tokenizer.encode(caption, max_words) for caption in captions], tokenizer.pad_id, max_words)


def pad(captions: Sequence[np.ndarray], pad_id: int, max_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of captions, int64 [B, L], and where they are not padding, bool [B, L].

    L is the length of the longest, rounded up to a multiple of 8 but not above `max_words`.
    """
    longest = max(len(words) for words in captions)
    length = max(longest, min(-(-longest // WIDTH_STEP) * WIDTH_STEP, max_words))
    padded = np.full((len(captions), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(captions), length), dtype=bool)
    for row, words in enumerate(captions):
        padded[row, : len(words)] = words
        mask[row, : len(words)] = True
    return padded, mask


def negatives(clips: Sequence[tuple[str, int]], seed: int) -> np.ndarray:
    """For each clip (clip id, epoch) of a micro batch the index of one that shows another video, int64 [clips].

    Neighbours swap (0 with 1, 2 with 3, ...); of an odd number the last three go in a circle. Where the neighbour is
    the same clip under another caption, one of the other clips is drawn from `stream`, keyed by the clip. So a choice
    depends on the micro batch alone, which is the same clips whatever the world size.

    Raises:
        ValueError: All clips show one video, or there is only one.
    """
    clip_ids = [clip_id for clip_id, _ in clips]
    size = len(clip_ids)
    if len(set(clip_ids)) < 2:
        raise ValueError(
            f"matching needs two different clips in a micro batch, got {size} of clip {clip_ids[0]!r}: raise "
            "train_micro_batch_size_per_gpu to 2 or more in the DeepSpeed JSON, or prepare more clips"
        )
    partners = np.arange(size, dtype=np.int64) ^ 1
    if size % 2:
        partners[-3:] = [size - 2, size - 1, size - 3]
    for index, (clip_id, epoch) in enumerate(clips):
        if clip_ids[partners[index]] == clip_id:
            others = [other for other in range(size) if clip_ids[other] != clip_id]
            partners[index] = others[stream(seed, epoch, clip_id, "negative").integers(len(others))]
    return partners
