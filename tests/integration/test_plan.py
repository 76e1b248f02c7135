"""The plan against DeepSpeed's engine on two ranks, and the benches that launch: autotune and scaling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from simvtp_ds.bench.launched import free_port
from tests.integration.conftest import DRIVERS, ROOT, TINY, deepspeed_json

pytestmark = pytest.mark.integration
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ENVIRONMENT.pop("LOCAL_RANK", None)
MODEL = [
    word
    for name, value in TINY.items()
    if name.startswith(("data", "model", "masks"))
    for word in (f"--{name}", str(value))
]


def succeed(*command: str, timeout: float = 300) -> list[str]:
    """Lines on stdout of a command that must exit with 0."""
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.splitlines()


def test_planned_memory_is_what_two_ranks_of_the_engine_take(tmp_path: Path) -> None:
    buckets = {"overlap_comm": True, "reduce_bucket_size": 300000, "allgather_bucket_size": 300000}
    paths = []
    for stage, offload, sections in (
        (2, {}, {}),
        (3, {}, {}),
        (2, {"offload_optimizer": {"device": "cpu"}}, {"bf16": {"enabled": True}}),
    ):
        path = tmp_path / f"{len(paths)}.json"
        sections = {**sections, "zero_optimization": {"stage": stage, **buckets, **offload}}
        path.write_text(json.dumps(deepspeed_json(micro=4, **sections)))
        paths.append(str(path))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    lines = succeed(*launch, str(DRIVERS / "plan_memory.py"), *paths)
    found = [json.loads(line.split("found", 1)[1]) for line in lines if "found {" in line]
    assert [one["path"] for one in found] == paths
    for name in ("memory", "flops"):
        ratios = [one[name]["predicted"] / one[name]["measured"] for one in found]
        assert ratios == pytest.approx([1.0] * len(paths), abs=0.1), (name, found)


def test_a_trial_that_runs_out_of_memory_ends_itself_and_not_the_tuner(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(deepspeed_json(micro=4)))
    command = [sys.executable, "-m", "simvtp_ds.bench.autotune", "--deepspeed_config", str(path), *MODEL]
    limit = "2.0"
    lines = succeed(*command, "--memory_gib", limit, "--largest", "8192", "--data.prefetch", "1")
    report = json.loads(lines[-1])
    tried = {trial["setting"]["micro_batch"]: trial["found"] for trial in report["steps"]}
    best = report["largest_micro_batch"]
    assert tried[best] is not None and None in tried.values()
    assert all(found is None for size, found in tried.items() if size > best)
    assert any("does not fit" in line for line in lines)
    assert any('"train_micro_batch_size_per_gpu": 4,' in line for line in lines)


def test_scaling_trains_on_one_and_on_two_ranks_and_draws_them(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(deepspeed_json(micro=2)))
    command = [sys.executable, "-m", "simvtp_ds.bench.scaling", "--deepspeed_config", str(path), "--ranks", "2", *MODEL]
    command += ["--rounds", "1", "--steps", "2", "--data.manifest", str(corpus), "--out", str(tmp_path / "out")]
    lines = succeed(*command)
    report = json.loads(lines[-1])
    assert report == json.loads((tmp_path / "out/scaling.json").read_text())
    assert [(row["kind"], row["ranks"], row["micro_batch"]) for row in report["rows"]] == [
        ("weak", 1, 2),
        ("weak", 2, 2),
    ]
    assert all(row["clips_per_s"] > 0 and row["steps"] == 2 for row in report["rows"])
    assert any("this machine shows no more than 2 ranks" in line for line in lines)
    assert cv2.imread(str(tmp_path / "out/scaling.png")) is not None
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["scaling.json", "scaling.png"]
