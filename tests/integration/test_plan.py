"""The plan against DeepSpeed's engine on two ranks, and an autotuner whose trials run out of memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
    path.write_text(json.dumps(deepspeed_json(micro=8, zero_optimization={"stage": 2, "reduce_bucket_size": 300000})))
    command = [sys.executable, "-m", "simvtp_ds.bench.autotune", "--deepspeed_config", str(path), *MODEL]
    # The batches that a loader holds ready weigh 1.1 GiB with 8 views of 2 clips a batch, and 1.7 GiB with 12.
    command += ["--data.views", "4", "--data.num_frames", "16", "--data.image_size", "224", "--data.prefetch", "250"]
    lines = succeed(*command, "--model.patch_size", "32", "--memory_gib", "3.0", "--largest", "12")
    report = json.loads(lines[-1])
    found = {trial["setting"]["micro_batch"]: trial["found"] for trial in report["steps"]}
    assert found[8] and found[12] is None, report
    assert report["largest_micro_batch"] == 8
    assert any("micro batch 12: does not fit (out of memory" in line for line in lines)
    assert '  "train_micro_batch_size_per_gpu": 8,' in lines
