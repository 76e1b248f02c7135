"""The index of a set of videos: a unit vector of each, and of each of their captions.

Dimensions: V videos, Q captions, D width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from simvtp_ds.data.manifest import Clip
from simvtp_ds.data.probe import stat_file
from simvtp_ds.data.storage import is_url
from simvtp_ds.data.videos import Videos
from simvtp_ds.evaluation.compute import ahead, evaluating
from simvtp_ds.evaluation.embed import plan_shots
from simvtp_ds.evaluation.frames import Missing, Shot, decode_shots
from simvtp_ds.evaluation.retriever import Retriever
from simvtp_ds.evaluation.share import BATCH
from simvtp_ds.progress import Show
from simvtp_ds.search.store import Store


class Stamp(NamedTuple):
    """Which file was indexed: another one under the same name, or the same with other bytes, has another stamp."""

    size: int  # bytes
    mtime: int  # ns
    device: int
    inode: int

    @classmethod
    def of(cls, info: os.stat_result) -> Stamp:
        """From what stat tells."""
        return cls(info.st_size, info.st_mtime_ns, info.st_dev, info.st_ino)


class Entry(NamedTuple):
    """A video that can be found."""

    clip: Clip
    captions: list[str]
    stamp: Stamp | None  # of the file that holds it; None at a URL


@dataclass(frozen=True)
class Index:
    """What a search looks through.

    Attributes:
        entries: The videos, V of them; numbered from 0 in the order of the manifest.
        vectors: float32 [V, D], of unit length.
        captions: The different captions of all videos, Q of them; none where they are file names.
        caption_vectors: float32 [Q, D], of unit length.
        bad: Videos that could not be decoded.
        embedded: How many videos were embedded now; the vectors of the others were kept from an earlier call.
    """

    entries: list[Entry]
    vectors: np.ndarray
    captions: list[str]
    caption_vectors: np.ndarray
    bad: list[Missing]
    embedded: int


def build_index(
    retriever: Retriever, videos: Videos, store: Store, segments: int, captioned: bool, show: Show
) -> Index:
    """Embed what the store does not hold yet, and keep it there batch by batch.

    A video is its middle view, or the average of `segments` views, as `evaluate.py` has them. One that cannot be
    decoded is left out and told in `bad`; it is tried again next time.

    Args:
        retriever: The model, on the device that it is to work on.
        videos: The set.
        store: For this model, these clip settings and views alone.
        segments: Views in time, evenly spread; 1: the middle.
        captioned: Captions are sentences, not file names.
        show: Progress.

    Raises:
        ValueError: no video can be decoded, or the model gives no finite numbers.
        OSError: the store cannot be written.
    """
    clips = [videos.clip(video) for video in range(len(videos))]
    stamps = {uri: _stamp(uri) for uri in {clip.uri for clip in clips} if not is_url(uri)}
    missing: dict[int, Missing] = {}
    keys: dict[int, bytes] = {}
    for video, clip in enumerate(clips):
        stamp = stamps.get(clip.uri)
        if isinstance(stamp, str):
            missing[video] = Missing(clip.clip_id, clip.uri, stamp)
        else:
            keys[video] = _digest("clip", *clip.source, *(stamp or ())[:2], clip.frames, clip.width, clip.height)
    known = store.get(keys.values())
    todo = [video for video, key in keys.items() if key not in known]
    with evaluating(retriever.model):
        with show("indexing", "videos") as on_progress:
            done = 0
            on_progress(done, len(todo))
            for vectors, finished in _embedded(retriever, videos, todo, segments, missing):
                new = {keys[video]: _finite(vector, retriever) for video, vector in vectors.items()}
                store.put(new)
                known |= new
                done += finished
                on_progress(done, len(todo))
        found = [video for video in keys if video not in missing]
        if not found:
            first = next(iter(missing.values()))
            raise ValueError(
                f"none of the {len(clips)} videos of {videos.manifest.folder} can be decoded, the first: "
                f"{first.clip_id}: {first.reason}"
            )
        rows = {video: videos.rows(video) for video in found}
        texts = {
            video: list(dict.fromkeys(videos.manifest[int(row)].caption for row in rows[video])) for video in found
        }
        captions = list(dict.fromkeys(caption for each in texts.values() for caption in each)) if captioned else []
        caption_vectors = _caption_vectors(retriever, captions, store, show)
    vectors = np.stack([known[keys[video]] for video in found])
    return Index(
        entries=[
            Entry(clips[v], texts[v], s if isinstance(s := stamps.get(clips[v].uri), Stamp) else None) for v in found
        ],
        vectors=vectors,
        captions=captions,
        caption_vectors=np.stack(caption_vectors) if captions else vectors[:0],
        bad=[missing[video] for video in sorted(missing)],
        embedded=len([video for video in todo if video not in missing]),
    )


def _embedded(
    retriever: Retriever,
    videos: Videos,
    todo: Sequence[int],
    segments: int,
    missing: dict[int, Missing],
) -> Iterator[tuple[dict[int, np.ndarray], int]]:
    """After each batch: the unit vectors of the videos that it finished, and how many it finished or gave up."""
    if not todo:
        return  # no decoder need start
    counts: dict[int, list[int]] = {}

    def batches() -> Iterator[list[Shot]]:
        for first in range(0, len(todo), BATCH):
            shots, planned = plan_shots(videos, [todo[first : first + BATCH]], retriever.data, segments, crops=1)
            counts.update(planned)
            yield from shots

    sums: dict[int, np.ndarray] = {}
    shots = decode_shots(batches(), retriever.data, missing)
    device = next(retriever.model.parameters()).device
    for batch, vectors in ahead(shots, retriever.model.embed_video, device):
        ended = []
        for shot, vector in zip(batch, vectors.numpy(), strict=True):
            sums[shot.video] = sums.get(shot.video, 0) + np.float32(counts[shot.video].pop(0)) * vector
            if not counts[shot.video]:
                ended.append(shot.video)
        whole = {video: sums.pop(video) for video in ended}
        yield {v: s / np.linalg.norm(s) for v, s in whole.items() if v not in missing}, len(ended)


def _caption_vectors(retriever: Retriever, captions: list[str], store: Store, show: Show) -> list[np.ndarray]:
    keys = [_digest("caption", caption) for caption in captions]
    known = store.get(keys)
    todo = [place for place, key in enumerate(keys) if key not in known]
    with show("indexing", "captions") as on_progress:
        on_progress(0, len(todo))
        for first in range(0, len(todo), BATCH):
            part = todo[first : first + BATCH]
            vectors = retriever.encode_text([captions[place] for place in part]).numpy()
            new = {keys[place]: _finite(vector, retriever) for place, vector in zip(part, vectors, strict=True)}
            store.put(new)
            known |= new
            on_progress(first + len(part), len(todo))
    return [known[key] for key in keys]


def _stamp(path: str) -> Stamp | str:
    """Of a regular file; or the reason why it is none."""
    reason = stat_file(path)
    return reason if isinstance(reason, str) else Stamp.of(os.stat(path))  # noqa: PTH116 (as stat_file)


def _finite(vector: np.ndarray, retriever: Retriever) -> np.ndarray:
    if not np.isfinite(vector).all():
        raise ValueError(f"{retriever.checkpoint} gives an embedding that is not finite: its weights are damaged")
    return np.ascontiguousarray(vector, dtype=np.float32)


def _digest(*parts: object) -> bytes:
    return blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()
