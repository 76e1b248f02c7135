"""What a packed set holds besides its shards: manifest, tokenizer, checksums, the list of what was refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simvtp_ds.data.manifest import Clip, write_manifest
from simvtp_ds.data.probe import Probe
from simvtp_ds.data.shards import Index, read_members
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.data.videos import Videos
from simvtp_ds.files import replacing

CHECKSUMS = "SHA256SUMS"


@dataclass(frozen=True)
class PackSummary:
    """What became of a prepared folder.

    Attributes:
        videos: Packed videos.
        captions: Rows of the packed manifest.
        hours: Length of the videos (those of unknown frame rate left out).
        shards: Tar files.
        gib: Their bytes.
        refused: Kind of reason -> videos that are not packed, though prepared.
    """

    videos: int
    captions: int
    hours: float
    shards: int
    gib: float
    refused: dict[str, int]


class _Place(NamedTuple):
    """A packed video."""

    uri: str
    offset: int
    length: int
    probe: Probe


def write_results(out: Path, folder: Path, videos: Videos, shards: list[Index]) -> PackSummary:
    """Writes everything beside the shards, each file whole or not at all, the manifest last.

    Args:
        out: The prepared folder.
        folder: The packed set.
        videos: Of `out`.
        shards: All of them, by number.

    Raises:
        ValueError: Not one video could be packed.
    """
    places = [
        _Place(index.uri, packed.offset, packed.length, packed.probe)
        for index in shards
        for packed in read_members(folder, index)
    ]
    captions, lengths, kinds = 0, 0.0, Counter()
    with replacing(folder / "refused.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
        with (out / "refused.jsonl").open(encoding="utf-8") as earlier:
            shutil.copyfileobj(earlier, file)
        for video, (_, _, _, probe) in enumerate(places):
            if probe.reason:
                kinds[probe.reason.partition(":")[0]] += 1
                for row in videos.rows(video):
                    clip = videos.manifest[int(row)]
                    entry = {"video": clip.clip_id, "caption": clip.caption, "reason": probe.reason}
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            else:
                captions += len(videos.rows(video))
                lengths += probe.frames / probe.fps if probe.fps else 0.0
    if not captions:
        raise ValueError(
            f"{folder}: none of {len(places)} videos could be packed, see its refused.jsonl; delete it to try again"
        )
    used = [index for index in shards if index.size]
    summary = PackSummary(
        videos=len(places) - kinds.total(),
        captions=captions,
        hours=lengths / 3600,
        shards=len(used),
        gib=sum(index.size for index in used) / 2**30,
        refused=dict(kinds.most_common()),
    )
    _write(folder / "summary.json", json.dumps(asdict(summary)) + "\n")
    Tokenizer.load(out).save(folder)
    _write(folder / CHECKSUMS, "".join(f"{index.sha256}  {index.uri}\n" for index in used))
    write_manifest(folder, _rows(videos, places))
    return summary


def _rows(videos: Videos, places: list[_Place]) -> Iterator[Clip]:
    """The prepared rows, in their order, of what is packed."""
    numbers = np.empty(len(videos.manifest), dtype=np.int64)
    for video in range(len(videos)):
        numbers[videos.rows(video)] = video
    for row, video in enumerate(numbers):
        uri, offset, length, probe = places[int(video)]
        if not probe.reason:
            clip = videos.manifest[row]
            shape = (probe.frames, probe.fps, probe.width, probe.height, probe.codec)
            yield Clip(clip.clip_id, uri, offset, length, clip.caption, *shape)


def _write(path: Path, content: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
