"""A real run under the supervisor: killed, stopped, robbed of its checkpoints, finished by another number of ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from simvtp_ds.engine.checkpoint import newest_valid
from tests.integration.conftest import Launch, Launcher, deepspeed_json, losses, no_process_left, processes

pytestmark = pytest.mark.integration
FIELDS = {"schedule.max_steps": 80, "run.save_every": 10, "model.text_dropout": 0.0}  # dropout differs between ranks


def supervised(launcher: Launcher, run: str, ranks: int) -> Launch:
    """`supervise.py -- deepspeed --num_gpus RANKS launch/pretrain.py ...`, with the same arguments every time."""
    fields = {**FIELDS, "run.mirror": launcher.folder / "second"}
    arguments = launcher.arguments("launch/pretrain.py", run, deepspeed_json(), fields)
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(ranks)]
    command = [sys.executable, "launch/supervise.py", "--wait", "0.1", "--", *deepspeed, "launch/pretrain.py"]
    return launcher.start([*command, *arguments], run)


def test_a_killed_run_goes_on_on_two_ranks_and_then_on_one_with_the_losses_of_an_undisturbed_one(
    launcher: Launcher,
) -> None:
    whole = launcher.torchrun("whole", deepspeed_json(), **{k.replace(".", "__"): v for k, v in FIELDS.items()})
    whole.succeed()

    two = supervised(launcher, "disturbed", ranks=2)
    run = two.run
    given = (launcher.folder / "disturbed.json").read_bytes()
    with no_process_left(str(run)):
        two.wait_for_step(15, timeout=240)
        ranks = [p for p in processes(str(run)) if b"--local_rank=1" in Path(f"/proc/{p}/cmdline").read_bytes()]
        victim = next(p for p in ranks if b"deepspeed.launcher" not in Path(f"/proc/{p}/cmdline").read_bytes())
        os.kill(victim, signal.SIGKILL)
        two.wait_for_step(30, timeout=240)
        two.process.terminate()
        code, output = two.wait(120)
    assert code == 75, output[-4000:]

    shutil.rmtree(run / "checkpoints")
    output = supervised(launcher, "disturbed", ranks=1).succeed()
    assert "1 ranks with 2 micro batches a step keep its 8 clips" in output
    assert f"resumed from {launcher.folder}/second/checkpoints/step_" in output
    assert "converted for another number of ranks" in output
    assert (launcher.folder / "disturbed.json").read_bytes() == given
    assert not list(run.glob(".universal-*"))

    events = [json.loads(line) for line in (run / "supervise.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["start", "end", "start", "end", "stopped", "start", "end", "finished"]
    assert "rank 1" in events[1]["reason"] or "SIGKILL" in events[1]["reason"]
    assert events[1]["step"] >= 10
    assert [e["step"] for e in events if e["event"] == "finished"] == [80]

    found, expected = losses(run), losses(whole.run)
    assert sorted(found) == list(range(1, 81))
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, abs=1e-5), f"step {step}"
    ours, theirs = (load_file(r / "checkpoints/step_00000080/weights.safetensors") for r in (run, whole.run))
    assert all((ours[name] - theirs[name]).abs().max() < 1e-4 for name in theirs)
    assert newest_valid(launcher.folder / "second") == launcher.folder / "second/checkpoints/step_00000080"
