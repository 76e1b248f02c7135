"""The benches of the training step as a person runs them, with the least there is to time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration
LEAST = ["--preset", "quickstart", "--clips", "2", "--words", "8", "--rounds", "1", "--warmup", "1"]


def bench(name: str, *arguments: str) -> tuple[dict, str]:
    """The report of a bench, as its last line has it, and all that it printed."""
    command = [sys.executable, "-m", f"simvtp_ds.bench.{name}", *LEAST, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_the_bench_of_the_step_compares_variants_that_have_the_same_loss(tmp_path: Path) -> None:
    variants = ["--baseline", "released", "hf-videomae", "--also", "one-by-one", "recompute"]
    report, said = bench("step", "--dtypes", "fp32", *variants, "--out", str(tmp_path / "out"))
    assert report == json.loads((tmp_path / "out/step.json").read_text())
    assert "| released fp32 / ours fp32 |" in said
    chart = cv2.imread(str(tmp_path / "out/step.png"))
    assert chart is not None and chart.shape[1] >= 800
    found = report["variants"]
    assert set(found) == {f"{name} fp32" for name in ("ours", "one-by-one", "recompute", "released", "hf-videomae")}
    for name in ("one-by-one", "recompute", "released"):
        assert found[f"{name} fp32"]["loss"] == pytest.approx(found["ours fp32"]["loss"], rel=1e-5), name
    ours, released = found["ours fp32"], found["released fp32"]
    # Counted, not timed: so they may be asserted. The peak of so small a model lies outside the blocks.
    assert released["model_flops"] > 1.2 * ours["model_flops"]
    assert released["peak_bytes"] > ours["peak_bytes"] >= found["recompute fp32"]["peak_bytes"]
    assert report["matmul_peak"]["fp32"] > 0 and ours["share_of_peak"] > 0


def test_the_bench_of_training_runs_the_real_engine_and_says_where_the_time_goes(tmp_path: Path) -> None:
    config = str(ROOT / "ds_configs/zero2_fp32.json")
    report, said = bench("train", "--deepspeed_config", config, "--workers", "1", "--out", str(tmp_path / "out"))
    assert report == json.loads((tmp_path / "out/train.json").read_text())
    assert report["zero_stage"] == 2 and report["dtype"] == "fp32"
    assert sum(report["shares"].values()) == pytest.approx(1)
    assert min(report["shares"].values()) >= 0 and report["bare_seconds"]["median"] > 0
    assert "over the bare step" in said
