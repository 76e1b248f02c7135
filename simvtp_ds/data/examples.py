"""What a loader makes batches of: rows of a manifest to pre-train on, videos of it to fine-tune on.

An example is a pure function of its number, the seed and the epoch; nothing depends on what was asked before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from simvtp_ds.config import MaskConfig
from simvtp_ds.data.captions import hide_words_of_batch, negatives, whole_captions
from simvtp_ds.data.manifest import Clip, Manifest
from simvtp_ds.data.masks import rebuilt_half, tube_masks
from simvtp_ds.data.mixture import Mixture
from simvtp_ds.data.order import AnyOrder, Order, replacement_row, stream, view_streams
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
        views: Rows of a micro batch that each clip fills.
    """

    seed: int
    least_clips: int
    views: int

    def __len__(self) -> int:
        """How many there are."""
        ...

    def order(self, global_batch: int) -> AnyOrder:
        """The examples of every step, and the epoch that each is drawn in."""
        ...

    def replacement(self, index: int, epoch: int, attempt: int) -> int:
        """The example in the place of one that cannot be decoded, nor could `attempt` - 1 others (from 1)."""
        ...

    def clip(self, index: int, epoch: int) -> Clip:
        """A video with the caption that it has in this epoch."""
        ...

    def view(self, clip: Clip, epoch: int) -> View:
        """What is shown of it in this epoch."""
        ...

    def assemble(self, frames: np.ndarray | Tensor, clips: Sequence[Clip], epochs: Sequence[int]) -> AnyBatch_co:
        """The micro batch of some clips; it keeps `frames`, uint8 [clips, T, H, W, 3], where they are and uncopied."""
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
        matching: Whether matching is trained, which takes the video of another clip.
    """

    def __init__(
        self,
        manifest: Manifest | Mixture,
        tokenizer: Tokenizer,
        data: DataConfig,
        masks: MaskConfig,
        grid: tuple[int, int, int],
        seed: int,
        matching: bool = True,
    ) -> None:
        self._manifest, self._tokenizer, self._data, self._masks, self._grid = manifest, tokenizer, data, masks, grid
        self.seed = seed
        self.least_clips = 2 if matching else 1
        self.views = data.views

    def __len__(self) -> int:
        return len(self._manifest)

    def order(self, global_batch: int) -> AnyOrder:
        """That of the manifest or mixture."""
        return self._manifest.order(global_batch, self.seed)

    def replacement(self, index: int, epoch: int, attempt: int) -> int:
        """A row of the same corpus."""
        return self._manifest.replacement(self.seed, epoch, index, attempt)

    def clip(self, index: int, epoch: int) -> Clip:
        """Row `index`, whatever the epoch."""
        return self._manifest[index]

    def view(self, clip: Clip, epoch: int) -> View:
        """`random_view`."""
        return random_view(self._data, self.seed, epoch, clip)

    def assemble(self, frames: np.ndarray | Tensor, clips: Sequence[Clip], epochs: Sequence[int]) -> Batch:
        """Draws masks and hidden words of each view, and the videos that do not belong."""
        views = self.views
        drawn = [(clip.clip_id, epoch) for clip, epoch in zip(clips, epochs, strict=True)]
        shown = torch.as_tensor(frames)
        streams = view_streams(self.seed, drawn, "tube", views)
        visible, hidden = tube_masks(streams, self._grid, self._masks.tube_ratio, shown.device)
        if self._masks.rebuild_half:
            hidden = rebuilt_half(view_streams(self.seed, drawn, "rebuild", views), hidden, self._grid)
        captions = hide_words_of_batch(
            view_streams(self.seed, drawn, "words", views),
            [clip.caption for clip in clips for _ in range(views)],
            self._tokenizer,
            self._data.max_words,
            self._masks.word_ratio,
        )
        numbers = repeat(video_numbers(clips), "clips -> (clips k)", k=views)
        arrays = (*captions, self._wrong_videos(drawn), numbers)
        return Batch(shown, visible, hidden, *(torch.from_numpy(array) for array in arrays))

    def _wrong_videos(self, drawn: list[tuple[str, int]]) -> np.ndarray:
        """For each view the same view of another clip, int64 [B]."""
        if self.least_clips == 1 and len({clip_id for clip_id, _ in drawn}) == 1:
            return np.arange(len(drawn) * self.views)  # there is none, and matching is not trained
        first = self.views * negatives(drawn, self.seed)
        return rearrange(first[:, None] + np.arange(self.views), "clips k -> (clips k)")


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
    views = 1

    def __init__(
        self, videos: Videos, tokenizer: Tokenizer, data: DataConfig, augment: AugmentConfig, seed: int
    ) -> None:
        self._videos, self._tokenizer, self._data, self._augment = videos, tokenizer, data, augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self._videos)

    def order(self, global_batch: int) -> AnyOrder:
        """Every epoch all videos once."""
        return Order(len(self), global_batch, self.seed)

    def replacement(self, index: int, epoch: int, attempt: int) -> int:
        """Any other video."""
        return replacement_row(self.seed, epoch, index, attempt, len(self))

    def clip(self, index: int, epoch: int) -> Clip:
        """Video `index` with a caption drawn uniformly from its own."""
        rows = self._videos.rows(index)
        drawn = stream(self.seed, epoch, self._videos.clip(index).clip_id, "caption").integers(len(rows))
        return self._videos.manifest[int(rows[drawn])]

    def view(self, clip: Clip, epoch: int) -> View:
        """`augmented_view`."""
        return augmented_view(self._data, self._augment, self.seed, epoch, clip)

    def assemble(self, frames: np.ndarray | Tensor, clips: Sequence[Clip], epochs: Sequence[int]) -> RetrievalBatch:
        """Whole captions, and the numbers that tell which videos are the same."""
        words, word_mask = whole_captions([clip.caption for clip in clips], self._tokenizer, self._data.max_words)
        arrays = (words, word_mask, video_numbers(clips))
        return RetrievalBatch(torch.as_tensor(frames), *(torch.from_numpy(array) for array in arrays))


def clips_of(micro_batch: int, examples: Examples[Any]) -> int:
    """Clips of a micro batch, each of which fills `views` of its rows.

    Raises:
        ValueError: They do not fill it, or are too few.
    """
    clips, rest = divmod(micro_batch, examples.views)
    if rest:
        raise ValueError(
            f"train_micro_batch_size_per_gpu is {micro_batch}, and it counts the {examples.views} views of each clip "
            f"(data.views): set it to a multiple of {examples.views} in the DeepSpeed JSON"
        )
    if clips < examples.least_clips:
        each = f" with {examples.views} views each (data.views)" if examples.views > 1 else ""
        raise ValueError(
            f"train_micro_batch_size_per_gpu is {micro_batch}; matching needs {examples.least_clips} different clips"
            f"{each} in a micro batch, set it to {examples.least_clips * examples.views} or more in the DeepSpeed JSON"
        )
    return clips


def video_numbers(clips: Sequence[Clip]) -> np.ndarray:
    """`video_number` of each clip, int64 [clips]."""
    return np.array([video_number(clip.clip_id) for clip in clips], dtype=np.int64)


def video_number(clip_id: str) -> int:
    """63 bits of the clip id's blake2b: the same on every rank, and different for different videos."""
    return int.from_bytes(hashlib.blake2b(clip_id.encode(), digest_size=8).digest(), "little") >> 1
