"""The two towers as ONNX: clips and captions to unit vectors, without torch."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simvtp_ds.interop.exported import CONFIG, ExportedConfig

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # absolute, between torch's unit vectors and onnxruntime's
VIDEO, TEXT = "video.onnx", "text.onnx"
OUTPUT = "vectors"  # a name that no operator has: the exporter calls values after theirs


class _Video(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor) -> Tensor:
        return self.model.embed_video(clips)


class _Text(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, words: Tensor, word_mask: Tensor) -> Tensor:
        return self.model.embed_text(words, word_mask)


def require_packages() -> None:
    """ValueError where a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--to onnx needs {' and '.join(missing)}: pip install {' '.join(PACKAGES)}")


def write_onnx(model: nn.Module, config: ExportedConfig, folder: Path) -> None:
    """Write both towers and config.json into a folder that is there, and compare them with the model.

    video.onnx takes `clips` uint8 [B, T, S, S, 3] (RGB), text.onnx `words` int64 [B, L] and `word_mask` bool [B, L]
    (False on padding); both give `vectors` float32 [B, D], of unit length, for any B and L.

    Args:
        model: Has embed_video and embed_text.
        config: Its sizes.
        folder: Where to.

    Raises:
        ValueError: onnxruntime's vectors differ from torch's by more than 1e-4, on random clips and captions of other
            numbers than those it was traced with.
    """
    size = config.clip["image_size"]
    vocabulary = next(m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding))
    generator = torch.Generator().manual_seed(0)
    several, longest = torch.export.Dim.DYNAMIC, config.clip["max_words"]

    def clips(count: int) -> tuple[Tensor, ...]:
        shape = (count, config.clip["num_frames"], size, size, 3)
        return (torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),)

    def captions(count: int, length: int) -> tuple[Tensor, ...]:
        words = torch.randint(1, vocabulary, (count, length), generator=generator)
        return words, torch.arange(length) < torch.randint(1, length + 1, (count, 1), generator=generator)

    any_captions = {0: several, 1: several}
    worst = 0.0
    for name, tower, traced, tried, dynamic in (
        (VIDEO, _Video(model), clips(2), clips(3), ({0: several},)),
        (TEXT, _Text(model), captions(2, longest), captions(3, max(3, longest - 1)), (any_captions, any_captions)),
    ):
        tower.eval()
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                tower,
                traced,
                folder / name,
                output_names=[OUTPUT],
                dynamo=True,
                dynamic_shapes=dynamic,
                external_data=False,
                verbose=False,
            )
        worst = max(worst, _difference(folder / name, tower, tried))
    if not worst <= TOLERANCE:
        raise ValueError(f"onnxruntime's vectors differ from torch's by {worst:.1e}, more than {TOLERANCE:g}")
    (folder / CONFIG).write_text(json.dumps({"format": "simvtp-ds onnx", **asdict(config)}, indent=1) + "\n")


def _difference(path: Path, tower: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})[0]
    with torch.inference_mode():
        return float((torch.from_numpy(found) - tower(*inputs)).abs().max())


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's log lines off."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
