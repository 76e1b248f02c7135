"""Videos to time decoders on, for a machine that has none: their content costs about what filmed content does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.video.stream import VideoStream

from simvtp_ds.bench.cases import FileSet, draw_clips, file_set, same_clips
from simvtp_ds.data.order import stream
from simvtp_ds.data.pack import PackConfig, pack
from simvtp_ds.data.prepare import prepare
from simvtp_ds.data.transcode import Encoding
from simvtp_ds.data_config import DataConfig
from simvtp_ds.progress import OnProgress, silence

FPS = 25
TIMEOUT = 600.0  # seconds that probing or packing one video may take


class Kind(NamedTuple):
    """How the videos of a set are encoded."""

    name: str
    width: int
    height: int
    codec: str
    options: dict[str, str]


KINDS = (
    Kind("H.264 596x336, GOP 250", 596, 336, "libx264", {"preset": "medium", "crf": "23", "g": "250"}),
    Kind("H.264 596x336, GOP 30", 596, 336, "libx264", {"preset": "medium", "crf": "23", "g": "30"}),
    Kind("H.264 320x240, GOP 250", 320, 240, "libx264", {"preset": "medium", "crf": "23", "g": "250"}),
    Kind("VP9 320x240, GOP 128", 320, 240, "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "b": "500k"}),
)
PACKED = Encoding(short_side=256, gop=16)


def rendered_sets(folder: Path, clips: int, frames: int, data: DataConfig, told: OnProgress) -> list[FileSet]:
    """Renders, prepares and packs `clips` videos of `frames` frames a kind; the packed sets are of H.264 alone.

    Args:
        folder: An empty folder.
        clips, frames: How many.
        data: What a clip shows.
        told: Called with (videos rendered, videos to render).
    """
    sets: list[FileSet] = []
    for place, kind in enumerate(KINDS):
        videos, out = folder / f"videos{place}", folder / f"prepared{place}"
        videos.mkdir()
        for number in range(clips):
            told(place * clips + number, clips * len(KINDS))
            name = f"{number}.mkv" if kind.codec == "libvpx-vp9" else f"{number}.mp4"
            _encode(videos / name, kind, _scenes(number, frames, kind.width, kind.height))
        captions = {path.name: "a drawn scene" for path in sorted(videos.iterdir())}
        (folder / f"{place}.json").write_text(json.dumps(captions))
        prepare(folder / f"{place}.json", out, videos, timeout=TIMEOUT)
        originals = draw_clips(out, clips)
        sets.append(file_set(kind.name, originals, data))
        if kind.codec == "libx264":
            shards = folder / f"packed{place}"
            pack(out, shards, PackConfig(encoding=PACKED), workers=1, timeout=TIMEOUT, show=silence)
            name = f"packed from {kind.name}"
            sets.append(file_set(name, same_clips(shards, originals), data, original=kind.name))
    told(clips * len(KINDS), clips * len(KINDS))
    return sets


def rendered_corpus(folder: Path, clips: int, frames: int, words: int, vocabulary: int, told: OnProgress) -> Path:
    """A prepared folder of `clips` H.264 videos with captions of about `words` tokens out of `vocabulary`.

    Args:
        folder: An empty folder.
        clips, frames: Videos, and frames of each.
        words: Tokens of the longest caption, [CLS] and [SEP] included; the shortest has a third.
        vocabulary: Tokens of the tokenizer; BERT's own cannot be had without a network.
        told: Called with (videos rendered, videos to render).
    """
    kind, rng = KINDS[2], stream(0, 0, "bench", "captions")
    videos, tokenizer, out = (folder / name for name in ("videos", "tokenizer", "prepared"))
    videos.mkdir()
    tokenizer.mkdir()
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    names = [f"word{number}" for number in range(vocabulary - len(special))]
    (tokenizer / "vocab.txt").write_text("\n".join([*special, *names]))
    captions = {}
    for number in range(clips):
        told(number, clips)
        _encode(videos / f"{number}.mp4", kind, _scenes(number, frames, kind.width, kind.height))
        length = words if number == 0 else int(rng.integers(max(3, words // 3), words + 1))
        captions[f"{number}.mp4"] = " ".join(names[place] for place in rng.integers(0, len(names), length - 2))
    (folder / "captions.json").write_text(json.dumps(captions))
    prepare(folder / "captions.json", out, videos, timeout=TIMEOUT, tokenizer=str(tokenizer))
    told(clips, clips)
    return out


def _encode(path: Path, kind: Kind, pictures: Iterator[np.ndarray]) -> None:
    with av.open(str(path), mode="w") as container:
        video = container.add_stream(kind.codec, rate=FPS, options=kind.options)
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = kind.width, kind.height, "yuv420p"
        for picture in pictures:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())


def _scenes(seed: int, frames: int, width: int, height: int) -> Iterator[np.ndarray]:
    """A camera that pans and zooms over texture, three textured things that move on their own, film grain.

    Frames are uint8 [height, width, 3].
    """
    rng = stream(seed, 0, "bench", "scene")
    ground = _texture(rng, 2 * width, 2 * height)
    things = [_texture(rng, width // 4, height // 4) for _ in range(3)]
    speed = rng.uniform(-1.5, 1.5, (4, 2))
    turn = rng.uniform(0, 2 * np.pi, (4, 2))
    for t in range(frames):
        sway = 0.2 * np.sin(turn + speed * t / FPS)  # of the camera and of the things, shares of the picture
        zoom = 1.0 + 0.15 * np.sin(turn[0, 0] + t / (2 * FPS))
        shift = (0.5 + sway[0]) * (width, height)
        camera = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        picture = cv2.warpAffine(ground, camera, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
        for thing, offset in zip(things, sway[1:], strict=True):
            h, w = thing.shape[:2]
            x, y = ((0.375 + 1.5 * offset) * (width, height)).astype(int)
            picture[y : y + h, x : x + w] = thing
        grain = cv2.resize(rng.normal(0, 3, (height // 2, width // 2)).astype(np.float32), (width, height))
        yield np.clip(picture + grain[..., None], 0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Noise whose octaves weigh as in photographs, float32 [height, width, 3] in levels."""
    total = np.full((height, width, 3), 128, np.float32)
    cells = 3
    while cells < width // 2:
        layer = rng.normal(0, 1, (max(2, cells * height // width), cells, 3)).astype(np.float32)
        total += 60 / cells**0.5 * cv2.resize(layer, (width, height), interpolation=cv2.INTER_CUBIC)
        cells *= 2
    return np.clip(total, 0, 255)
