"""Hugging Face's VideoMAE at the size of ViT-B: in, the same reconstruction, and out again."""

from __future__ import annotations

from pathlib import Path

import torch
from hf_models import hf_config
from safetensors.torch import load_file
from test_formats import assert_equal_states, reconstruction_as_theirs
from transformers import VideoMAEForPreTraining

from simvtp_ds.config import ModelConfig
from simvtp_ds.engine.convert import convert
from simvtp_ds.interop.autodetect import read_source
from simvtp_ds.model.simvtp import SimVTP


def test_vit_b_rebuilds_as_huggingface_does_and_comes_out_bit_for_bit(tmp_path: Path) -> None:
    size = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    decoder = {f"decoder_{n}": v for n, v in {**size, "hidden_size": 384, "num_hidden_layers": 4}.items()}
    decoder |= {"decoder_num_attention_heads": 6, "decoder_intermediate_size": 1536}
    clips = {"image_size": 112, "patch_size": 16, "num_frames": 8, "layer_norm_eps": 1e-12}  # its tables take long
    theirs = VideoMAEForPreTraining(hf_config(**size, **decoder, **clips)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):  # theirs start at zero, which would hide a bias that is lost
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    convert(str(tmp_path / "theirs"), tmp_path / "ours", "simvtp-ds", lambda line: None)
    convert(str(tmp_path / "ours"), tmp_path / "back", "hf-videomae", lambda line: None)
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "back")]
    assert_equal_states(files[1], files[0])

    source = read_source(tmp_path / "ours")
    model = SimVTP(ModelConfig(), num_frames=8, image_size=112, vocab_size=10).eval()
    assert source.model() == ModelConfig()
    model.load_state_dict(source.state, strict=False)
    assert reconstruction_as_theirs(theirs, model, clips=1, visible=40) < 1e-4
