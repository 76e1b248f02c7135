"""Hugging Face's VideoMAE and BERT, of the tiny model's sizes or others, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from saved_runs import randomised, words
from tiny import IMAGE_SIZE, NUM_FRAMES, TINY
from transformers import BertConfig, BertModel, VideoMAEConfig, VideoMAEForPreTraining


def hf_config(**fields: Any) -> VideoMAEConfig:
    """The configuration of the tiny model's twin."""
    tiny = {
        "image_size": IMAGE_SIZE,
        "patch_size": TINY.patch_size,
        "num_frames": NUM_FRAMES,
        "tubelet_size": TINY.tubelet_size,
        "hidden_size": TINY.width,
        "num_hidden_layers": TINY.depth,
        "num_attention_heads": TINY.heads,
        "intermediate_size": 4 * TINY.width,
        "layer_norm_eps": 1e-6,
        "use_mean_pooling": False,
        "decoder_hidden_size": TINY.decoder_width,
        "decoder_num_hidden_layers": TINY.decoder_depth,
        "decoder_num_attention_heads": TINY.decoder_heads,
        "decoder_intermediate_size": 4 * TINY.decoder_width,
    }
    return VideoMAEConfig(**(tiny | fields))


def hf_pretraining(**fields: Any) -> Any:
    """VideoMAEForPreTraining, every parameter random."""
    return randomised(VideoMAEForPreTraining(hf_config(**fields)))


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict with biases of queries and values under the names of files on the hub."""
    return {n.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): value for n, value in state.items()}


def write_bert(folder: Path, width: int = TINY.width) -> str:
    """A folder of BERT with the words of saved_runs."""
    config = BertConfig(
        vocab_size=words().vocab_size,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=TINY.text_positions,
    )
    BertModel(config).save_pretrained(folder)  # pyright: ignore[reportCallIssue] (a Module to pyright)
    words().save(folder)
    return str(folder)
