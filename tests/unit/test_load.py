"""The public API: `simvtp_ds.load`, and what the loaded model gives."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import IMAGE_SIZE, NUM_FRAMES, TINY, tiny_batch

import simvtp_ds
from simvtp_ds.config import PretrainConfig
from simvtp_ds.config_files import save_config
from simvtp_ds.data.text import Tokenizer, train_wordpiece
from simvtp_ds.data_config import DataConfig
from simvtp_ds.engine.checkpoint import RECORD, Position
from simvtp_ds.engine.saving import WEIGHTS
from simvtp_ds.files import sha256
from simvtp_ds.model.simvtp import SimVTP

CAPTIONS = ["a red ball rolls", "a dog", "two dogs run to a ball"]
DATA = DataConfig(num_frames=NUM_FRAMES, image_size=IMAGE_SIZE, max_words=8)


def pretraining_run(folder: Path) -> tuple[SimVTP, Tokenizer]:
    """Write the folder of a run with one checkpoint, as training leaves it; the model in it."""
    tokenizer = train_wordpiece(CAPTIONS, 100)
    torch.manual_seed(0)
    model = SimVTP(TINY, NUM_FRAMES, IMAGE_SIZE, tokenizer.vocab_size).eval()
    checkpoint = folder / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    save_config(PretrainConfig(data=DATA, model=TINY), folder / "config.yaml")
    save_file(model.state_dict(), checkpoint / WEIGHTS)
    files = {WEIGHTS: {"sha256": sha256(checkpoint / WEIGHTS), "bytes": (checkpoint / WEIGHTS).stat().st_size}}
    position = Position(1, 1, 2, "fp32", 1, 0, "", "")
    (checkpoint / RECORD).write_text(json.dumps({"position": asdict(position), "files": files}))
    return model, tokenizer


def test_a_run_is_loaded_and_gives_the_models_vectors_for_clips_and_captions(tmp_path: Path) -> None:
    model, tokenizer = pretraining_run(tmp_path)
    loaded, frames = simvtp_ds.load(str(tmp_path)), tiny_batch(40).frames  # more than a batch
    with torch.no_grad():
        video = torch.cat([model.embed_video(frame[None]) for frame in frames])
        words = [torch.from_numpy(tokenizer.encode(caption, 8))[None] for caption in CAPTIONS]
        text = torch.cat([model.embed_text(own, torch.ones_like(own, dtype=torch.bool)) for own in words])
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
