"""A thousand batches: memory and open files of the rank and its decoders stay where they were."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from simvtp_ds.config import MaskConfig
from simvtp_ds.data.examples import PretrainExamples
from simvtp_ds.data.loader import Loader
from simvtp_ds.data.manifest import Clip, Manifest, write_manifest
from simvtp_ds.data.text import train_wordpiece
from simvtp_ds.data_config import DataConfig

BATCHES, WARM = 1000, 200


def render(path: Path, shade: int) -> Clip:
    """A clip of 20 frames, 64 x 64, H.264 with B-frames."""
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "2", "g": "10", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for t in range(20):
            picture = np.full((64, 64, 3), (20 * shade + 3 * t) % 256, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return Clip(path.stem, str(path), 0, path.stat().st_size, f"shade number {shade}", 20, 25.0, 64, 64, "h264")


def footprint() -> tuple[float, int]:
    """Resident MiB and open files of this process and its children."""
    while True:
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        try:
            return sum(p.memory_info().rss for p in family) / 2**20, sum(p.num_fds() for p in family)
        except psutil.NoSuchProcess:
            continue  # a child ended meanwhile


@pytest.mark.integration
@pytest.mark.timeout(900)
def test_a_thousand_batches_leave_memory_and_open_files_flat(tmp_path: Path) -> None:
    clips = [render(tmp_path / f"clip{i}.mp4", i) for i in range(12)]
    inside = tmp_path / "shard.tar"  # a clip inside a larger file is read another way
    inside.write_bytes(bytes(512) + Path(clips[0].uri).read_bytes() + bytes(512))
    (tmp_path / "broken.mp4").write_bytes(Path(clips[1].uri).read_bytes()[:700])  # errors must not leak either
    clips.append(Clip("inside", str(inside), 512, clips[0].length, "in a shard", 20, 25.0, 64, 64, "h264"))
    clips.append(Clip("broken", str(tmp_path / "broken.mp4"), 0, 700, "cut off", 20, 25.0, 64, 64, "h264"))
    write_manifest(tmp_path, clips)
    tokenizer = train_wordpiece([clip.caption for clip in clips], 100)
    data = DataConfig(num_frames=4, frame_stride=2, image_size=64, workers=2, prefetch=2, max_bad_share=0.5)
    examples = PretrainExamples(Manifest.open(tmp_path), tokenizer, data, MaskConfig(), (2, 4, 4), 0)
    loader = Loader(examples, data, 4, 1, 0, 1, end_step=BATCHES)
    batches = iter(loader)
    for _ in range(WARM):
        next(batches)
    memory, files = footprint()
    for _ in range(BATCHES - WARM):
        last = next(batches)
    memory_after, files_after = footprint()
    print(
        f"batch {WARM}: {memory:.1f} MiB, {files} files; batch {BATCHES}: {memory_after:.1f} MiB, {files_after} files"
    )
    print(f"{loader.clips_seen} clips, {loader.clips_bad} bad, waited {loader.wait_seconds:.1f} s")
    assert last.frames.shape == (4, 4, 64, 64, 3)
    assert loader.clips_bad > 100
    assert memory_after - memory < 20
    assert files_after <= files
    assert next(batches, None) is None
    assert not [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
