"""Weights out of real DeepSpeed checkpoints, into real runs, and into onnxruntime."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import simvtp_ds
from simvtp_ds.config import ModelConfig
from simvtp_ds.engine.convert import convert
from simvtp_ds.interop import zero
from simvtp_ds.interop.autodetect import read_source
from simvtp_ds.model.simvtp import SimVTP

from .conftest import DRIVERS, ROOT, Launcher, deepspeed_json, free_port

pytestmark = pytest.mark.integration
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each ZeRO stage: what engine.save_checkpoint wrote on two ranks, and expected.safetensors."""
    folder = tmp_path_factory.mktemp("zero")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command += [str(DRIVERS / "zero_checkpoints.py"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_two_ranks_gives_the_engines_weights_on_one_process(checkpoints: Path, stage: int) -> None:
    folder = checkpoints / f"stage_{stage}"
    expected = load_file(folder / "expected.safetensors")
    assert (folder / "latest").is_file()
    for path in (folder, folder / "step_2"):
        source = read_source(path)
        assert source.state.keys() == expected.keys()
        assert all(torch.equal(source.state[name], expected[name]) for name in expected)
    assert source.reports[0].format == "DeepSpeed checkpoint of simvtp-ds, pre-training"


def test_a_checkpoint_without_one_of_its_shards_or_with_a_damaged_one_is_refused(
    checkpoints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "step_2"
    shutil.copytree(checkpoints / "stage_2" / "step_2", folder)
    shard = folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"rank_1_mp_rank_00_optim_states\.pt is a damaged zip archive"):
        read_source(folder)
    shard.unlink()
    with pytest.raises(ValueError, match=r"is not a whole ZeRO checkpoint .*Expected 2"):
        read_source(folder)
    assert zero.is_zero_checkpoint(folder)


def write_videomae(path: Path) -> None:
    """A VideoMAE checkpoint of the launches' sizes."""
    model = SimVTP(
        ModelConfig(32, 2, 2, decoder_width=16, decoder_depth=1, decoder_heads=2, patch_size=8), 4, 32, vocab_size=1
    )
    state = {n: v for n, v in model.state_dict().items() if n.startswith(("patches.", "encoder.", "decoder."))}
    save_file(state, path)


def test_runs_start_from_weights_and_their_shards_export_to_a_model_that_onnxruntime_runs(
    launcher: Launcher, tmp_path: Path
) -> None:
    write_videomae(tmp_path / "start.safetensors")
    first = launcher.torchrun("started", deepspeed_json(), init=tmp_path / "start.safetensors", schedule__max_steps=2)
    code, output = first.wait()
    assert code == 0, output
    told = json.loads((first.run / "init.json").read_text())
    assert told["files"][0]["format"] == "simvtp-ds, pre-training"
    assert {name.split(".")[0] for name in told["missing"]} == {"words", "word_head", "match_head"}
    assert "9 tensors start at random" in (first.run / "log.txt").read_text()

    (checkpoint,) = (first.run / "checkpoints").iterdir()
    expected = load_file(checkpoint / "weights.safetensors")
    bare = first.run / "checkpoints" / "bare"
    bare.mkdir()
    for path in checkpoint.glob("*.pt"):
        shutil.copy(path, bare)
    lines: list[str] = []
    convert(str(bare), tmp_path / "exported", "simvtp-ds", lines.append)
    assert "DeepSpeed checkpoint of simvtp-ds" in lines[0]
    found = load_file(tmp_path / "exported" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    command = [sys.executable, "launch/convert.py", tmp_path / "exported", "--to", "onnx", "--out", tmp_path / "onnx"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "  left out decoder.mask_token" in done.stdout
    onnxruntime = pytest.importorskip("onnxruntime")
    model = simvtp_ds.load(tmp_path / "exported")
    clips = np.random.default_rng(0).integers(0, 256, (5, 4, 32, 32, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "video.onnx"))
    (video,) = session.run(["vectors"], {"clips": clips})
    np.testing.assert_allclose(video, model.encode_video(clips).numpy(), atol=1e-4)
    ids = model.tokenizer.encode("a red ball", 64)[None]
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "text.onnx"))
    (text,) = session.run(["vectors"], {"words": ids, "word_mask": np.ones_like(ids, dtype=bool)})
    np.testing.assert_allclose(text, model.encode_text(["a red ball"]).numpy(), atol=1e-4)
