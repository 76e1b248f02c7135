"""A manifest seen as videos."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from simvtp_ds.data.manifest import Clip, Manifest, write_manifest
from simvtp_ds.data.videos import Videos


def manifest(folder: Path, names: list[str]) -> Manifest:
    """One row a name; equal names are captions of one video."""
    folder.mkdir()
    write_manifest(
        folder, [Clip(name, f"/{name}", 0, 1, f"caption {i}", 9, 1.0, 8, 8, "h264") for i, name in enumerate(names)]
    )
    return Manifest.open(folder)


def ids(videos: Videos) -> list[str]:
    return [videos.clip(video).clip_id for video in range(len(videos))]


def test_captions_of_a_video_are_found_wherever_they_stand(tmp_path: Path) -> None:
    names = [f"v{number}" for number in np.random.default_rng(0).integers(40, size=300)]
    expected = defaultdict(list)
    for row, name in enumerate(names):
        expected[name].append(row)
    videos = Videos(manifest(tmp_path / "m", names))
    assert ids(videos) == list(expected)  # in the order of their first rows
    assert [videos.rows(video).tolist() for video in range(len(videos))] == list(expected.values())
    assert videos.clip(0).caption == "caption 0"


def test_held_out_videos_are_taken_whole_and_are_the_same_whatever_the_order(tmp_path: Path) -> None:
    names = [f"v{number // 3}" for number in range(300)]
    videos = Videos(manifest(tmp_path / "m", names))
    rest, held_out = videos.split(20, seed=1)
    assert len(rest) == 80 and len(held_out) == 20
    assert set(ids(rest)) | set(ids(held_out)) == set(names) and not set(ids(rest)) & set(ids(held_out))
    rows = [row for part in (rest, held_out) for video in range(len(part)) for row in part.rows(video)]
    assert sorted(rows) == list(range(300))
    assert ids(held_out) == [name for name in ids(videos) if name in set(ids(held_out))]
    shuffled = Videos(manifest(tmp_path / "shuffled", names[::-1])).split(20, seed=1)[1]
    assert set(ids(shuffled)) == set(ids(held_out))
    assert set(ids(videos.split(20, seed=2)[1])) != set(ids(held_out))


def test_most_held_out_videos_stay_when_the_corpus_grows(tmp_path: Path) -> None:
    names = [f"v{number}" for number in range(1000)]
    small = set(ids(Videos(manifest(tmp_path / "small", names[:900])).split(100, seed=0)[1]))
    large = set(ids(Videos(manifest(tmp_path / "large", names)).split(100, seed=0)[1]))
    assert 80 <= len(small & large) < 100


def test_nothing_or_all_but_nothing_may_be_held_out(tmp_path: Path) -> None:
    videos = Videos(manifest(tmp_path / "m", ["a", "b", "a"]))
    assert [len(part) for part in videos.split(0, seed=0)] == [2, 0]
    with pytest.raises(ValueError, match=r"2 of the 2 videos .* validation\.videos"):
        videos.split(2, seed=0)
