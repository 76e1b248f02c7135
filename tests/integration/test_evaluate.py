"""Evaluations as a person starts them: the same scores for any number of ranks, and no rank that waits for ever."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ROOT, TINY_FINETUNE, Launch, Launcher, deepspeed_json, free_port, no_process_left

pytestmark = pytest.mark.integration
CLIPS = 201  # not a multiple of two ranks, nor of the batches


@pytest.fixture(scope="module")
def run(launcher: Launcher) -> Path:
    """Two steps of pre-training, a checkpoint after each."""
    launch = launcher.torchrun("run", deepspeed_json(), ranks=1, schedule__max_steps=2, run__save_every=1)
    launch.succeed()
    return launch.run


@pytest.fixture(scope="module")
def manifest(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for command in (
        ["launch/render_corpus.py", "--out", f"{folder}/videos", "--train", "1", "--test", str(CLIPS), "--seed", "5"],
        ["launch/prepare.py", f"{folder}/videos/test.json", "--out", f"{folder}/test", "--tokenizer", str(corpus)],
    ):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, timeout=120, capture_output=True)
    return folder / "test"


def evaluate(launcher: Launcher, how: str, run: Path, manifest: Path, *more: str) -> Launch:
    port = str(free_port())
    script = ["launch/evaluate.py", "--checkpoint", str(run), "--manifest", str(manifest), *more]
    commands = {
        "plain": [sys.executable],
        "torchrun": [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nproc_per_node=2", f"--master_port={port}"),
        ],
        "deepspeed": [
            *(str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2"),
            *("--master_addr", "127.0.0.1", "--master_port", port),
        ],
    }
    return launcher.start([*commands[how], *script], "evaluation")


def scores(path: Path) -> dict[str, Any]:
    """What was written, less what may differ: how long it took."""
    found = json.loads(path.read_text())
    assert found.pop("seconds")["metrics"] < 5
    return found


@pytest.fixture(scope="module")
def alone(launcher: Launcher, run: Path, manifest: Path) -> dict[str, Any]:
    """Scores of one process, two segments, re-ranked."""
    out = run / "alone.json"
    options = ("--segments", "2", "--rerank", "2", "--out", str(out))
    output = evaluate(launcher, "plain", run, manifest, *options).succeed()
    assert f"{CLIPS} captions and {CLIPS} videos embedded" in output
    assert "dual softmax" in output and "re-ranked 2" in output and "multi-view" in output
    return scores(out)


def test_scores_are_of_every_clip(alone: dict[str, Any]) -> None:
    assert (alone["queries"], alone["videos"], alone["missing"]) == (CLIPS, CLIPS, [])
    assert alone["chance_R@1"] == pytest.approx(100 / CLIPS)
    assert (alone["kind"], alone["protocol"]) == ("pretrain", "honest")
    assert alone["annotations"] == {"rows": CLIPS, "accepted": CLIPS}
    assert set(alone["columns"]) == {"raw", "dual_softmax", "multi_view", "rerank_top_k"}
    for way in ("t2v", "v2t"):
        assert alone[way] == alone["columns"]["raw"][way]
        low, high = alone[way]["interval"]["R@10"]
        assert low <= alone[way]["R@10"] <= high
        # Re-ranking the first two moves nothing across the fifth place.
        assert alone["columns"]["rerank_top_k"][way]["R@5"] == alone[way]["R@5"]


def test_two_ranks_score_what_one_process_scores(
    launcher: Launcher, run: Path, manifest: Path, alone: dict[str, Any]
) -> None:
    out = run / "two.json"
    options = ("--segments", "2", "--rerank", "2", "--no-cache", "--out", str(out))
    output = evaluate(launcher, "torchrun", run, manifest, *options).succeed()
    assert output.count("text to video") == 1, "one rank speaks"
    assert scores(out) == alone


def test_two_ranks_score_a_fine_tuned_run_as_one_process_does(launcher: Launcher, run: Path, manifest: Path) -> None:
    """One tower for both, a matching head and a moving average, under the deepspeed launcher."""
    launch = launcher.torchrun(
        *("tuned", deepspeed_json(), 1, "launch/finetune.py"),
        **{name: None for name in TINY_FINETUNE if name.startswith("model.")},
        **{"init": run, "towers": "shared", "objectives.vtm": 0.5, "ema_decay": 0.5, "schedule.max_steps": 2},
    )
    launch.succeed()
    found = {}
    for how in ("plain", "deepspeed"):
        out = launch.run / f"{how}.json"
        evaluate(launcher, how, launch.run, manifest, "--rerank", "2", "--no-cache", "--out", str(out)).succeed()
        found[how] = scores(out)
    assert found["plain"] == found["deepspeed"]
    assert (found["plain"]["kind"], found["plain"]["queries"], found["plain"]["missing"]) == ("finetune", CLIPS, [])
    assert found["plain"]["columns"]["raw"] != scores(run / "alone.json")["columns"]["raw"]


def test_kept_embeddings_give_the_same_scores_and_are_made_again_when_damaged(
    launcher: Launcher, run: Path, manifest: Path, alone: dict[str, Any]
) -> None:
    (kept,) = (run / "embeddings").iterdir()
    options = ("--segments", "2", "--out", str(run / "kept.json"))
    assert "embeddings read from" in evaluate(launcher, "torchrun", run, manifest, *options).succeed()
    found = scores(run / "kept.json")
    assert all(found["columns"][name] == alone["columns"][name] for name in ("raw", "dual_softmax", "multi_view"))
    kept.write_bytes(kept.read_bytes()[:-10])
    assert "videos embedded in" in evaluate(launcher, "plain", run, manifest, *options).succeed()
    assert scores(run / "kept.json") == found


def test_the_authors_protocol_says_what_it_chose_among(launcher: Launcher, run: Path, manifest: Path) -> None:
    options = ("--protocol", "authors", "--segments", "2", "--crops", "1", "--out", str(run / "authors.json"))
    output = evaluate(launcher, "plain", run, manifest, *options).succeed()
    assert "biased upward" in output
    found = scores(run / "authors.json")
    assert found["selected_on"] == "the evaluated set"
    assert sorted(found["candidates"]) == ["step_00000001", "step_00000002"]
    assert found["authors"]["t2v"]["R@1"] == max(found["candidates"].values())
    assert found["authors"]["t2v"] == found["columns"]["multi_view"]["t2v"]["optimistic"]


def test_what_cannot_be_evaluated_is_one_clear_line(launcher: Launcher, run: Path, manifest: Path) -> None:
    damaged = run.with_name("damaged")
    shutil.copytree(run, damaged)
    checkpoint = damaged / "checkpoints" / "step_00000002"
    weights = bytearray((checkpoint / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (checkpoint / "weights.safetensors").write_bytes(weights)
    for path, told in ((checkpoint, "is damaged"), (run / "nothing", "neither a run")):
        code, output = evaluate(launcher, "plain", path, manifest).wait()
        assert code == 1 and told in output and "Traceback" not in output, output


def decodes(pid: int) -> bool:
    """Whether a process has a decoder."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return any("spawn_main" in Path(f"/proc/{child}/cmdline").read_text() for child in children)
    except OSError:  # a child that has just ended
        return False


def test_a_rank_whose_partner_was_killed_ends_by_itself(launcher: Launcher, run: Path, manifest: Path) -> None:
    """Without a launcher that would end it."""
    command = [sys.executable, "launch/evaluate.py", "--checkpoint", str(run), "--manifest", str(manifest)]
    command += ["--no-cache", "--segments", "9"]
    places = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    with no_process_left(str(run)):
        ranks = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **places, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        deadline = time.monotonic() + 60
        # Its decoder runs: the ranks are connected.
        while not decodes(ranks[1].pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ranks[1].send_signal(signal.SIGKILL)
        output, _ = ranks[0].communicate(timeout=300)  # it ends its own part first
        ranks[1].communicate(timeout=10)
    assert ranks[0].returncode == 1, output
    assert "another rank has ended" in output and "Traceback" not in output, output
