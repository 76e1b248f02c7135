"""The public API: `simvtp_ds.load`, and what the loaded model gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saved_runs import CAPTIONS, finetuning_run, pretraining_run, words
from tiny import tiny_batch

import simvtp_ds
from simvtp_ds.engine.convert import convert


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("make", [pretraining_run, finetuning_run])
def test_a_run_or_its_export_gives_the_models_vectors_for_clips_and_captions(
    tmp_path: Path, make: Any, exported: bool
) -> None:
    model, path = make(tmp_path / "run"), tmp_path / "run"
    if exported:
        path = tmp_path / "exported"
        convert(str(tmp_path / "run"), path, "simvtp-ds", lambda line: None)
    loaded, frames = simvtp_ds.load(str(path)), tiny_batch(40).frames  # more than a batch
    with torch.no_grad():
        video = torch.cat([model.embed_video(frame[None]) for frame in frames])
        ids = [torch.from_numpy(words().encode(caption, 8))[None] for caption in CAPTIONS]
        text = torch.cat([model.embed_text(own, torch.ones_like(own, dtype=torch.bool)) for own in ids])
    for clips in (frames, frames.numpy()):
        torch.testing.assert_close(loaded.encode_video(clips), video)
    torch.testing.assert_close(loaded.encode_text(CAPTIONS), text)
    similarity = loaded.similarity(loaded.encode_text(CAPTIONS), loaded.encode_video(frames))
    torch.testing.assert_close(similarity, torch.nn.functional.cosine_similarity(text[:, None], video[None], dim=-1))


def test_clips_and_captions_of_another_kind_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    pretraining_run(tmp_path)
    loaded, frames = simvtp_ds.load(tmp_path), tiny_batch(2).frames
    for clips in (frames.float() / 255, frames[0], frames[:, :2], frames[:0], np.zeros((1, 3, 4, 16, 16), np.uint8)):
        with pytest.raises(ValueError, match=r"this model reads uint8 \[B, 4, 16, 16, 3\]"):
            loaded.encode_video(clips)
    for captions in ("a dog", [], [b"a dog"]):
        with pytest.raises(ValueError, match="give a list of one string or more"):
            loaded.encode_text(captions)  # pyright: ignore[reportArgumentType] (that is what is tested)
