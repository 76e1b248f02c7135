"""Fine-tuning runs: from a pre-trained checkpoint to scores, whatever the ranks, accumulation or interruptions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simvtp_ds.data.text import train_wordpiece
from tests.integration.conftest import ROOT, TINY_FINETUNE, Launcher, deepspeed_json, losses

pytestmark = pytest.mark.integration
FINETUNE = "launch/finetune.py"
# 64 videos, 8 of them held out: 56 to train on, 7 steps of 8 an epoch.


@pytest.fixture(scope="module")
def pretrained(launcher: Launcher) -> Path:
    """A pre-training run of two steps."""
    launch = launcher.torchrun("pretrained", deepspeed_json(micro=8), ranks=1, schedule__max_steps=2)
    launch.succeed()
    return launch.run


@pytest.fixture(scope="module")
def fields(pretrained: Path) -> dict[str, Any]:
    """Settings of a run that starts from the pre-trained model: its sizes are not for us to choose."""
    return {
        **{name: None for name in TINY_FINETUNE if name.startswith("model.")},
        "init": pretrained,
        "objectives.vtm": 0.5,
        "ema_decay": 0.5,
        "schedule.max_steps": 8,
        "run.save_every": 1,
        "run.keep": 8,
    }


@pytest.fixture(scope="module")
def finetuned(launcher: Launcher, fields: dict[str, Any]) -> Path:
    """Eight steps on two ranks under the deepspeed launcher, from the pre-trained model, with an average."""
    launch = launcher.deepspeed("finetuned", deepspeed_json(), driver=FINETUNE, **fields)
    output = launch.succeed()
    assert "finished at step 8" in output
    return launch.run


def test_a_run_leaves_losses_scores_and_the_model_that_it_started_from(finetuned: Path, pretrained: Path) -> None:
    assert sorted(losses(finetuned)) == list(range(1, 9))
    assert all(len(values) == 3 for values in losses(finetuned).values())  # total, vtc, vtm
    scores = [json.loads(line) for line in (finetuned / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in scores] == [7, 8]  # after each epoch, and at the end
    assert all(0 <= line[way]["R@1"] <= 100 for line in scores for way in ("t2v", "v2t"))
    assert (finetuned / "tokenizer/tokenizer.json").read_bytes() == (
        pretrained / "tokenizer/tokenizer.json"
    ).read_bytes()
    assert "width: 32" in (finetuned / "config.yaml").read_text()


def test_the_average_is_the_formula_over_the_weights_of_every_step(finetuned: Path, pretrained: Path) -> None:
    folders = sorted((finetuned / "checkpoints").glob("step_*"))
    assert len(folders) == 8
    average: dict[str, torch.Tensor] = {}
    for step, folder in enumerate(folders):
        weights = load_file(folder / "weights.safetensors")
        decay = min(0.5, (1 + step) / (10 + step))
        # Before the first step the average is the initial weights, which are the pre-trained ones.
        if not average:
            start = load_file(next((pretrained / "checkpoints").glob("step_*")) / "weights.safetensors")
            average = {"video.patches.weight": start["patches.weight"]}
        average = {name: decay * value + (1 - decay) * weights[name] for name, value in average.items()}
        found = load_file(folder / "ema.safetensors")
        assert found.keys() == weights.keys()
        for name, value in average.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
            assert not found[name].equal(weights[name])


def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(
    finetuned: Path, fields: dict[str, Any], launcher: Launcher
) -> None:
    resumed = launcher.folder / "finetuned_again"
    shutil.copytree(finetuned, resumed)
    for folder in sorted((resumed / "checkpoints").glob("step_*"))[4:]:
        shutil.rmtree(folder)
    launch = launcher.torchrun("finetuned_again", deepspeed_json(), driver=FINETUNE, **fields)
    assert "resumed from" in launch.succeed()
    assert losses(resumed) == losses(finetuned)
    assert (resumed / "validation.jsonl").read_text() == (finetuned / "validation.jsonl").read_text()
    for name in ("weights.safetensors", "ema.safetensors"):
        ours, theirs = (load_file(run / "checkpoints/step_00000008" / name) for run in (resumed, finetuned))
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours)


@pytest.mark.parametrize("towers", ["untied", "shared"])
def test_ranks_and_accumulation_change_nothing(launcher: Launcher, towers: str) -> None:
    def run(name: str, ranks: int, micro: int, accumulation: int) -> dict[int, tuple[float, ...]]:
        config = deepspeed_json(micro=micro, accumulation=accumulation)
        launch = launcher.torchrun(f"{towers}_{name}", config, ranks=ranks, driver=FINETUNE, towers=towers)
        launch.succeed()
        return losses(launch.run)

    plain = run("plain", ranks=1, micro=8, accumulation=1)
    found = run("split", ranks=2, micro=2, accumulation=2)
    assert sorted(found) == sorted(plain) == [1, 2, 3, 4, 5, 6]
    for step, values in plain.items():
        assert found[step] == pytest.approx(values, rel=2e-5), step


REFUSED = {
    "no checkpoint": ({"init": "/nonexistent"}, "is neither a run"),
    "sizes beside a checkpoint": ({"init": "PRETRAINED", "model.width": 64}, "--model.width"),
    "towers of another kind to start from": ({"init": "FINETUNED", "towers": "shared"}, "has untied towers"),
    "a damaged start": ({"init": "DAMAGED"}, "has no complete checkpoint"),
    "a checkpoint with a flipped bit": ({"init": "FLIPPED"}, "is damaged: its sha256"),
    "more held out than there are": ({"validation.videos": 64}, "lower validation.videos"),
    "other words": ({"init": "PRETRAINED", "data.tokenizer": "OTHER"}, "other words"),
    "weights split among ranks": ({"stage": 3}, "set zero_optimization.stage to 0, 1 or 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(
    name: str, launcher: Launcher, pretrained: Path, finetuned: Path
) -> None:
    fields, said = REFUSED[name]
    damaged, other = launcher.folder / "damaged", launcher.folder / "other"
    flipped = launcher.folder / "flipped" / "checkpoints" / "step_00000002"
    if not damaged.exists():
        shutil.copytree(pretrained, damaged)
        weights = next(damaged.glob("checkpoints/step_*/weights.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1])
        shutil.copytree(pretrained, flipped.parent.parent)
        content = bytearray((flipped / "weights.safetensors").read_bytes())
        content[-1] ^= 1
        (flipped / "weights.safetensors").write_bytes(content)
        other.mkdir()
        train_wordpiece(["other words than the corpus has"], 100).save(other)
    places = {"PRETRAINED": pretrained, "FINETUNED": finetuned, "DAMAGED": damaged, "FLIPPED": flipped, "OTHER": other}
    given: dict[str, Any] = {field: places.get(str(value), value) for field, value in fields.items()}
    if "init" in given:
        given = {**{field: None for field in TINY_FINETUNE if field.startswith("model.")}, **given}
    config = deepspeed_json(stage=given.pop("stage", 2))
    arguments = launcher.arguments(FINETUNE, "refused", config, given)
    result = subprocess.run(
        [sys.executable, FINETUNE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not (launcher.folder / "refused").exists()
