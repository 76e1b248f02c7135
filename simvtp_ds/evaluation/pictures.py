"""Clips for pictures: a file that a person names, or the first videos of a manifest, decoded as in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simvtp_ds.config import MaskConfig
from simvtp_ds.config_files import load_config
from simvtp_ds.data.manifest import Clip, Manifest
from simvtp_ds.data.mixture import Mixture
from simvtp_ds.data.prepare import probed_clip
from simvtp_ds.data.probe import probe_files, stat_file
from simvtp_ds.data_config import DataConfig
from simvtp_ds.evaluation.frames import Missing, Shot, decode_shots
from simvtp_ds.evaluation.retriever import Retriever, load_retriever
from simvtp_ds.evaluation.share import BATCH
from simvtp_ds.evaluation.views import plan_views


@dataclass(frozen=True)
class Pretrained:
    """A pre-trained model with what its run hid from it."""

    retriever: Retriever
    masks: MaskConfig
    seed: int


def load_pretrained(path: Path) -> Pretrained:
    """The model of a pre-training run, or of one of its checkpoints, on the CPU.

    Raises:
        ValueError: as `load_retriever`; or it is a fine-tuned one, which has neither pixel decoder nor word head.
    """
    retriever = load_retriever(path)
    config = load_config(retriever.run / "config.yaml") if retriever.kind == "pretrain" else None
    if config is None:
        raise ValueError(
            f"{path} is a fine-tuned model, which rebuilds no pixels and names no words: name the pre-training run "
            "that it started from"
        )
    return Pretrained(retriever, config.masks, config.run.seed)


def clip_of_file(path: Path, caption: str, timeout: float) -> Clip:
    """A video file as a clip, probed as launch/prepare.py does; its id is the file's name.

    Raises:
        ValueError: it cannot be used, with the reason.
    """
    name = str(path.absolute())
    ((_, probe),) = probe_files([name], 1, timeout)
    if probe.reason:
        raise ValueError(f"--clip {path}: {probe.reason}")
    size = stat_file(name)
    if isinstance(size, str):
        raise ValueError(f"--clip {path}: {size}")
    return probed_clip(path.name, caption, name, size[0], probe)


def first_clips(manifest: Manifest | Mixture, count: int) -> list[Clip]:
    """The first `count` different videos in the order of the rows, each with its first caption; fewer if there are."""
    found: dict[str, Clip] = {}
    for row in range(len(manifest)):
        if len(found) == count:
            break
        clip = manifest[row]
        found.setdefault(clip.clip_id, clip)
    return list(found.values())


def decoded(
    clips: Sequence[Clip], data: DataConfig, missing: dict[int, Missing]
) -> Iterator[tuple[Clip, np.ndarray, np.ndarray | None]]:
    """Each clip that can be decoded with the frames of its middle view, uint8 [T, H, W, 3], and another clip's.

    The other is the next one (of 32 decoded together, the last takes the first); None where there is but one. Clips
    that cannot be decoded go into `missing`, by their number.
    """
    shots = [Shot(number, clip, plan_views(clip, data, 1, 1)[0].view) for number, clip in enumerate(clips)]
    batches = [shots[start : start + BATCH] for start in range(0, len(shots), BATCH)]
    before: np.ndarray | None = None
    for batch, frames in decode_shots(batches, data, missing):
        good = [place for place, shot in enumerate(batch) if shot.video not in missing]
        for place, following in zip(good, good[1:] + good[:1], strict=True):
            other = frames[following] if len(good) > 1 else before
            yield batch[place].clip, frames[place], other
        before = frames[good[0]] if good else before
