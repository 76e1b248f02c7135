"""A small captioned video corpus, drawn: one object, one motion, one background a clip.

It lets the whole chain run on a machine that has no data. Everything in it is a pure function of (seed, split, index),
files included: x264 with one thread writes the same bytes on every run.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import av
import cv2
import numpy as np

from simvtp_ds.data.scenes import (
    DIRECTIONS,
    GROUND_COLOURS,
    OBJECT_COLOURS,
    SHAPES,
    SIZES,
    SPEEDS,
    Scene,
    caption,
    make_scenes,
    training_caption,
)

SIDE = 96  # pixels, height and width of a clip
FPS = 16
VERSION = 3  # raise it when the same seed draws other clips


def _outline(shape: str) -> np.ndarray:
    """A closed polygon [points, 2] inside the unit circle, y downwards."""
    if shape == "circle":
        angles = np.linspace(0, 2 * np.pi, 48)
        return 0.9 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if shape == "square":
        return np.array([(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)])
    if shape == "triangle":
        return np.array([(0, -0.95), (0.9, 0.7), (-0.9, 0.7)])
    if shape == "cross":
        a, b = 0.3, 0.92
        half = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        return np.array([*half, *[(-x, -y) for x, y in half]])
    raise ValueError(f"no outline for shape {shape!r}; known: {', '.join(SHAPES)}")


def _pose(scene: Scene, frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre [T, 2] as shares of SIDE, angle [T] in radians and scale [T] of the object over the clip."""
    time = np.linspace(0, 1, frames)
    speed, radius = SPEEDS[scene.speed], SIZES[scene.size]
    centre = np.full((frames, 2), 0.5) + rng.uniform(-1, 1, 2) * (0.42 - radius)
    angle, scale = np.full(frames, rng.uniform(-0.15, 0.15)), np.ones(frames)
    if scene.motion in DIRECTIONS:
        axis = np.array(DIRECTIONS[scene.motion])
        path = (time - 0.5)[:, None] * axis * 0.5 * speed + 0.5
        centre = np.where(axis != 0, path, centre)
    elif scene.motion == "spins":
        angle = angle + rng.choice([-1, 1]) * np.pi * speed * time
    elif scene.motion in ("grows", "shrinks"):
        scale = 0.6 + 0.8 * (time if scene.motion == "grows" else time[::-1])
    return centre, angle, scale


def _ground(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The background, float32 [H, W, 3] in levels."""
    base = np.array(GROUND_COLOURS[scene.ground], dtype=np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)
    # Of black lighter, else darker: never as bright as an object.
    other = base * 0.55 if base.mean() > 30 else base + 30
    y, x = np.mgrid[0:SIDE, 0:SIDE] + rng.integers(0, 24, 2)[:, None, None]
    if scene.texture == "striped":
        on = ((x + y) if rng.random() < 0.5 else (x - y)) % 16 < 8
    elif scene.texture == "dotted":
        on = (x % 16 - 8) ** 2 + (y % 16 - 8) ** 2 < 18
    elif scene.texture == "checked":
        on = (x // 12 + y // 12) % 2 == 0
    else:
        on = np.zeros((SIDE, SIDE), dtype=bool)
    light = 1 + 0.08 * (rng.uniform(-1, 1) * (x / SIDE - 0.5) + rng.uniform(-1, 1) * (y / SIDE - 0.5))
    return (np.where(on[..., None], other, base) * light[..., None]).astype(np.float32)


def draw(scene: Scene) -> np.ndarray:
    """The frames of a scene, uint8 [T, H, W, 3] in RGB; T between 36 and 48."""
    rng = np.random.default_rng((*scene.seed, 2))
    frames = int(rng.integers(36, 49))
    ground = np.clip(_ground(scene, rng), 0, 255).astype(np.uint8)
    fill = np.clip(np.array(OBJECT_COLOURS[scene.colour]) + rng.uniform(-8, 8, 3), 0, 255)
    centre, angle, scale = _pose(scene, frames, rng)
    shift = 4  # OpenCV draws in sixteenths of a pixel
    clip = np.empty((frames, SIDE, SIDE, 3), dtype=np.uint8)
    for t in range(frames):
        turn = np.array([[np.cos(angle[t]), np.sin(angle[t])], [-np.sin(angle[t]), np.cos(angle[t])]])
        pixels = (centre[t] + _outline(scene.shape) @ turn * SIZES[scene.size] * scale[t]) * SIDE - 0.5
        polygon = [np.rint(pixels * 2**shift).astype(np.int32)]
        canvas = ground.copy()
        cv2.fillPoly(canvas, polygon, fill.tolist(), cv2.LINE_AA, shift)
        cv2.polylines(canvas, polygon, True, (fill * 0.5).tolist(), 1, cv2.LINE_AA, shift)
        clip[t] = canvas
    return clip


def encode(frames: np.ndarray) -> bytes:
    """An H.264 mp4 (yuv420p, GOP 12) of uint8 [T, H, W, 3] RGB frames; the same frames give the same bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        # mbtree with B-frames reads memory that x264 never wrote: other bytes in another process.
        parameters = "keyint=12:bframes=1:mbtree=0"
        stream.options = {"preset": "veryfast", "crf": "20", "threads": "1", "x264-params": parameters}
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Write through a temporary name, so that a file under its own name is always whole."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)


def _render(job: tuple[str, Scene]) -> None:
    path, scene = job
    _write(Path(path), encode(draw(scene)))


def render_corpus(
    out: Path, train: int, test: int, seed: int, workers: int, on_clip: Callable[[int, int], None]
) -> tuple[int, int]:
    """Write OUT/{train,test}/NNNNN.mp4, OUT/{train,test}.json ({"relative path": "caption"}) and OUT/corpus.json.

    An interrupted call goes on where it was: whole files are kept. `on_clip(done, total)` is called after each clip.
    Returns (clips rendered now, clips in all). Raises ValueError where OUT holds a corpus of other settings.
    """
    settings = {"version": VERSION, "train": train, "test": test, "seed": seed}
    marker = out / "corpus.json"
    if marker.exists():
        found = json.loads(marker.read_text())
        if {key: found.get(key) for key in settings} != settings:
            raise ValueError(
                f"{marker} is of another corpus ({found}, asked for: {settings}): delete {out} or use another --out"
            )
    scenes = dict(zip(("train", "test"), make_scenes(train, test, seed), strict=True))
    for split in scenes:
        (out / split).mkdir(parents=True, exist_ok=True)
    _write(marker, json.dumps({**settings, "complete": False}).encode())
    jobs, captions = [], {}
    for split, members in scenes.items():
        names = [f"{split}/{index:05d}.mp4" for index in range(len(members))]
        tell = training_caption if split == "train" else caption
        captions[split] = {name: tell(scene) for name, scene in zip(names, members, strict=True)}
        jobs += [(str(out / n), s) for n, s in zip(names, members, strict=True) if not (out / n).exists()]
    total = train + test
    if jobs:
        with ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
        ) as pool:
            for done, _ in enumerate(pool.map(_render, jobs, chunksize=8), start=total - len(jobs) + 1):
                on_clip(done, total)
    for split, lines in captions.items():
        _write(out / f"{split}.json", json.dumps(lines, indent=1).encode())
    _write(marker, json.dumps({**settings, "complete": True}).encode())
    return len(jobs), total
