"""The bench of the data side as a person runs it, with the least there is to time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration


def test_the_bench_renders_times_every_reader_and_ends_in_a_json_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simvtp_ds.bench.data", "--out", str(tmp_path / "out")]
    command += ["--clips", "1", "--rounds", "1", "--workers", "1", "--frames", "30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == json.loads((tmp_path / "out/data.json").read_text())
    chart = cv2.imread(str(tmp_path / "out/data.png"))
    assert chart is not None and chart.shape[1] >= 800
    assert "| clips per CPU second, one worker | ratio |" in done.stdout
    assert len(report["sets"]) == 7
    for name, readers in report["sets"].items():
        assert readers["ours"]["mean_difference"] == 0.0
        for reader, found in readers.items():
            if "missing" not in found:
                assert found["one"]["clips_per_cpu_s"] > 0 and found["all"]["clips_per_s"] > 0
                assert found.get("right_frames", 1.0) == 1.0, (name, reader)
        assert {"one", "all"} <= readers["ours"].keys() and {"one", "all"} <= readers["FFmpeg, bare"].keys()
    assert "no h264 on the CPU" in report["sets"]["H.264 596x336, GOP 30"]["DALI, CPU"]["missing"]
    dali = report["sets"]["VP9 320x240, GOP 128"]["DALI, CPU"]
    assert dali.get("mean_difference", 0.0) < 1.0
