"""Clips of one colour, and a model that sees colours: what it must find is known without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simvtp_ds.data.manifest import Clip, Manifest, write_manifest
from simvtp_ds.data.text import Tokenizer, train_wordpiece
from simvtp_ds.data.videos import Videos
from simvtp_ds.data_config import DataConfig
from simvtp_ds.evaluation.retriever import Retriever

RGB = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "orange": (220, 110, 20)}
FRAMES, WIDTH, HEIGHT = 8, 48, 32
DATA = DataConfig(num_frames=2, frame_stride=2, image_size=16, max_words=8, workers=1, decode_timeout=20.0)


class Colours(nn.Module):
    """Embeds a clip by its mean colour, and a sentence by the mean of the colours it names; counts what it embeds."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        table = torch.full((tokenizer.vocab_size, 3), 1.0)
        for name, colour in RGB.items():
            table[int(tokenizer.encode(name, 3)[1])] = torch.tensor(colour, dtype=torch.float32)
        self.table = nn.Parameter(table)
        self.clips = self.captions = 0

    def embed_video(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] to [B, 3] of unit length."""
        self.clips += len(frames)
        return F.normalize(frames.float().mean(dim=(1, 2, 3)), dim=-1)

    def embed_text(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """int64 [B, L] to [B, 3] of unit length."""
        self.captions += len(words)
        return F.normalize((self.table[words] * word_mask[..., None]).sum(dim=1), dim=-1)


def draw(path: Path, colours: Sequence[str], codec: str = "libx264") -> Path:
    """A video that shows each colour equally long."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(FRAMES):
            colour = RGB[colours[number * len(colours) // FRAMES]]
            picture = np.full((HEIGHT, WIDTH, 3), colour, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def clip(path: Path, name: str, caption: str, offset: int = 0, length: int | None = None) -> Clip:
    """A row of a manifest."""
    size = path.stat().st_size if length is None else length
    return Clip(name, str(path), offset, size, caption, FRAMES, 8.0, WIDTH, HEIGHT, "h264")


def set_of(folder: Path, clips: list[Clip]) -> Videos:
    """Videos of a manifest in the folder."""
    folder.mkdir(exist_ok=True)
    write_manifest(folder, clips)
    return Videos(Manifest.open(folder))


def colour_retriever(folder: Path) -> Retriever:
    """Ready to search."""
    tokenizer = train_wordpiece([f"a {name} clip" for name in RGB] * 20, 200)
    tokenizer.save(folder)
    model = Colours(tokenizer)
    return Retriever(model, tokenizer, DATA, folder, folder / "checkpoint", "finetune", False, 0.05, "colours")
