"""SimVTP on DeepSpeed: masked video-text pre-training at scale.

import simvtp_ds
model = simvtp_ds.load("runs/mine")
scores = model.similarity(model.encode_text(["a dog runs"]), model.encode_video(clips))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from simvtp_ds.evaluation.retriever import Retriever

__version__ = "0.1.0"


def load(path: str | Path) -> Retriever:
    """A trained model, on the CPU: `encode_video(clips)`, `encode_text(captions)`, `similarity(text, video)`.

    `model.model.to("cuda")` moves it to a GPU; `model.data` says what clips it reads.

    Args:
        path: A folder that launch/convert.py wrote, the folder of a run, or one of its checkpoints.

    Raises:
        ValueError: it is none of these, or damaged; the message says what is wrong and what to do.
    """
    from pathlib import Path

    from simvtp_ds.evaluation.retriever import load_retriever  # torch and all: only for those who load a model

    return load_retriever(Path(path))
