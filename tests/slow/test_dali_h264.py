"""Our DALI graph on real H.264 and HEVC against our own decoding: DALI 2.1.0 is the last that decodes them on a CPU.

Not in CI: it makes a virtual environment (420 MB to download). Run with: pytest tests/slow -s
SIMVTP_DALI_2_1 names an environment that is there already (numpy, nvidia-dali-cuda120==2.1.0).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from simvtp_ds.data.decode import decode_into
from simvtp_ds.data.manifest import Clip
from simvtp_ds.data.sampling import View, random_view
from simvtp_ds.data.storage import Source
from simvtp_ds.data_config import DataConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

DATA = DataConfig(flip=True)


@pytest.fixture(scope="module")
def old_dali(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with DALI 2.1.0."""
    if given := os.environ.get("SIMVTP_DALI_2_1"):
        return Path(given) / "bin/python"
    folder = tmp_path_factory.mktemp("dali") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin/pip", "install", "-q", "nvidia-dali-cuda120==2.1.0", "numpy"], check=True)
    return folder / "bin/python"


@pytest.fixture(scope="module")
def clips(shared: Path) -> list[Clip]:
    rows = [json.loads(line) for line in (shared / "data/clips/clips.jsonl").read_text().splitlines()]
    found = []
    for row in rows:
        if row["codec"] in ("h264", "hevc"):
            path = shared / "data/clips" / row["file"]
            size = path.stat().st_size
            rest = (row["caption"], row["frames"], row["fps"], row["width"], row["height"], row["codec"])
            found.append(Clip(row["file"], str(path), 0, size, *rest))
    return found


def differences(python: Path, clips: list[Clip], views: list[View], folder: Path) -> np.ndarray:
    """Levels between DALI's clips and ours, uint8 [clips, T, H, W, 3], of those in which both show the same stream."""
    job = folder / "job.json"
    wanted = [
        {"file": c.uri, "frames": v.indices.tolist(), "box": v.box, "flip": v.flip, "size": (c.height, c.width)}
        for c, v in zip(clips, views, strict=True)
    ]
    job.write_text(json.dumps(wanted))
    script = Path(__file__).with_name("dali_run.py")
    subprocess.run([python, script, job, str(DATA.image_size)], check=True)
    found = []
    for number, (clip, view) in enumerate(zip(clips, views, strict=True)):
        answer = folder / f"{number}.npy"
        if not answer.exists():
            assert answer.with_suffix(".txt").read_text() == "another stream", clip.uri
            with av.open(clip.uri) as container:
                assert len(container.streams.video) > 1
            continue
        theirs = np.load(answer)
        ours = np.empty_like(theirs)
        decode_into(ours, Source(clip.uri, clip.offset, clip.length), view)
        found.append(np.maximum(ours, theirs) - np.minimum(ours, theirs))
    assert len(found) > 30
    return np.stack(found)


def report(what: str, levels: np.ndarray) -> None:
    print(f"\n{what}: {len(levels)} clips, largest difference {levels.max()}, mean {levels.mean():.4f}, ", end="")
    print(f"pixels that differ {(levels > 0).mean():.2%}")


def test_cropped_clips_are_equal_to_the_pixel(old_dali: Path, clips: list[Clip], tmp_path: Path) -> None:
    large = [clip for clip in clips if min(clip.width, clip.height) > DATA.image_size]
    views = [
        random_view(replace(DATA, crop_scales=(DATA.image_size / min(clip.width, clip.height),)), 0, 0, clip)
        for clip in large
    ]
    assert {view.box[2:] for view in views} == {(DATA.image_size, DATA.image_size)}
    levels = differences(old_dali, large, views, tmp_path)
    report("cropped", levels)
    assert levels.max() == 0


def test_resized_clips_differ_by_one_level_at_most(old_dali: Path, clips: list[Clip], tmp_path: Path) -> None:
    levels = differences(old_dali, clips, [random_view(DATA, 0, 0, clip) for clip in clips], tmp_path)
    report("cropped and resized", levels)
    assert levels.max() <= 1 and levels.mean() < 0.2
