"""What a loader makes batches of: rows of a manifest to pre-train on, videos of it to fine-tune on.

An example is a pure function of its number, the seed and the epoch; nothing depends on what was asked before.
"""

from __future__ import annotations

import hashlib
from typing import Protocol, TypeVar

import numpy as np
import torch

from simvtp_ds.config import MaskConfig
from simvtp_ds.data.captions import hide_words_of_batch, negatives, whole_captions
from simvtp_ds.data.manifest import Clip, Manifest
from simvtp_ds.data.masks import tube_masks
from simvtp_ds.data.order import stream
from simvtp_ds.data.sampling import View, augmented_view, random_view
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.data.videos import Videos
from simvtp_ds.data_config import DataConfig
from simvtp_ds.finetune_config import AugmentConfig
from simvtp_ds.types import Batch, RetrievalBatch

AnyBatch_co = TypeVar("AnyBatch_co", Batch, RetrievalBatch, covariant=True)


class Examples(Protocol[AnyBatch_co]):
    """Examples 0 .. len - 1, each of which an epoch shows at most once.

    Attributes:
        seed: Seed of the run; the order of the examples follows from it too.
        least_clips: Different clips that a micro batch needs.
    """

    seed: int
    least_clips: int

    def __len__(self) -> int:
        """How many there are."""
        ...

    def clip(self, index: int, epoch: int) -> Clip:
        """A video with the caption that it has in this epoch."""
        ...

    def view(self, clip: Clip, epoch: int) -> View:
        """What is shown of it in this epoch."""
        ...

    def assemble(self, frames: np.ndarray, clips: list[Clip], epoch: int) -> AnyBatch_co:
        """The micro batch of some clips; it keeps `frames`, uint8 [B, T, H, W, 3], without a copy."""
        ...


class PretrainExamples:
    """The rows of a manifest, with hidden patches and hidden words, for the four objectives.

    Args:
        manifest: The rows.
        tokenizer: Turns captions into ids.
        data: Settings of the clips.
        masks: How much is hidden.
        grid: Tokens (t, h, w) of a clip.
        seed: Seed of the run.
    """

    least_clips = 2  # matching takes the video of another clip

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        data: DataConfig,
        masks: MaskConfig,
        grid: tuple[int, int, int],
        seed: int,
    ) -> None:
        self._manifest, self._tokenizer, self._data, self._masks, self._grid = manifest, tokenizer, data, masks, grid
        self.seed = seed

    def __len__(self) -> int:
        return len(self._manifest)

    def clip(self, index: int, epoch: int) -> Clip:
        """Row `index`, whatever the epoch."""
        return self._manifest[index]

    def view(self, clip: Clip, epoch: int) -> View:
        """`random_view`."""
        return random_view(self._data, self.seed, epoch, clip)

    def assemble(self, frames: np.ndarray, clips: list[Clip], epoch: int) -> Batch:
        """Draws masks, hidden words and the videos that do not belong."""
        ids = [clip.clip_id for clip in clips]
        visible, hidden = tube_masks(ids, self._grid, self._masks.tube_ratio, self.seed, epoch)
        max_words, ratio = self._data.max_words, self._masks.word_ratio
        captions = hide_words_of_batch(clips, self._tokenizer, max_words, ratio, self.seed, epoch)
        arrays = (frames, visible, hidden, *captions, negatives(ids, self.seed, epoch))
        return Batch(*(torch.from_numpy(array) for array in arrays))


class RetrievalExamples:
    """Videos, each with one of its captions an epoch; nothing is hidden.

    Args:
        videos: The videos.
        tokenizer: Turns captions into ids.
        data: Settings of the clips.
        augment: How clips are changed.
        seed: Seed of the run.
    """

    least_clips = 1  # negatives may come from other ranks

    def __init__(
        self, videos: Videos, tokenizer: Tokenizer, data: DataConfig, augment: AugmentConfig, seed: int
    ) -> None:
        self._videos, self._tokenizer, self._data, self._augment = videos, tokenizer, data, augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self._videos)

    def clip(self, index: int, epoch: int) -> Clip:
        """Video `index` with a caption drawn uniformly from its own."""
        rows = self._videos.rows(index)
        drawn = stream(self.seed, epoch, self._videos.clip(index).clip_id, "caption").integers(len(rows))
        return self._videos.manifest[int(rows[drawn])]

    def view(self, clip: Clip, epoch: int) -> View:
        """`augmented_view`."""
        return augmented_view(self._data, self._augment, self.seed, epoch, clip)

    def assemble(self, frames: np.ndarray, clips: list[Clip], epoch: int) -> RetrievalBatch:
        """Whole captions, and the numbers that tell which videos are the same."""
        words, word_mask = whole_captions([clip.caption for clip in clips], self._tokenizer, self._data.max_words)
        numbers = np.array([video_number(clip.clip_id) for clip in clips], dtype=np.int64)
        return RetrievalBatch(*(torch.from_numpy(array) for array in (frames, words, word_mask, numbers)))


def video_number(clip_id: str) -> int:
    """63 bits of the clip id's blake2b: the same on every rank, and different for different videos."""
    return int.from_bytes(hashlib.blake2b(clip_id.encode(), digest_size=8).digest(), "little") >> 1
