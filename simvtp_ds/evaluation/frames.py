"""Views of clips as bytes, decoded by processes that may hang or die; a clip that fails is told, not replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from simvtp_ds.data.manifest import Clip
from simvtp_ds.data.sampling import View
from simvtp_ds.data.worker import DecoderPool, Task, failure
from simvtp_ds.data_config import DataConfig
from simvtp_ds.evaluation.share import BATCH


class Shot(NamedTuple):
    """A view to decode of a video (its number)."""

    video: int
    clip: Clip
    view: View


class Missing(NamedTuple):
    """A video that could not be looked at."""

    clip_id: str
    uri: str
    reason: str


def decode_shots(
    batches: Iterable[list[Shot]], data: DataConfig, missing: dict[int, Missing]
) -> Iterator[tuple[list[Shot], np.ndarray]]:
    """Each batch of at most 32 shots with its frames uint8 [B, T, H, W, 3], in memory of its own.

    The frames of a clip that cannot be decoded are zeros, so that its neighbours stay where they are; the clip goes
    into `missing`, and further shots of it are not tried. Decoder processes live from the first batch to the last;
    they end with the thread that calls this.
    """
    shape = (1, BATCH, data.num_frames, data.image_size, data.image_size, 3)
    with DecoderPool(data.workers, shape, data.decode_timeout, data.storage) as pool:
        for shots in batches:
            wanted = [place for place, shot in enumerate(shots) if shot.video not in missing]
            pool.submit(
                Task(0, place, shot.clip.source, shot.view)
                for place, shot in ((place, shots[place]) for place in wanted)
            )
            failed = set(range(len(shots))) - set(wanted)
            for outcome in pool.drain():
                if (reason := failure(outcome)) is not None:
                    failed.add(outcome.task.position)
                    video, clip, _ = shots[outcome.task.position]
                    missing[video] = Missing(clip.clip_id, clip.uri, reason)
            frames = pool.frames[0, : len(shots)].copy()
            frames[sorted(failed)] = 0
            yield shots, frames
