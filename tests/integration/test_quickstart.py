"""The quickstart at a size that takes a minute: every command of it, and what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT

pytestmark = pytest.mark.integration


def test_the_quickstart_runs_from_drawing_to_report_and_goes_on_when_called_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    environment = {**os.environ, "VENV": sys.prefix, "RUN": str(run), "CLIPS": "256", "TEST_CLIPS": "24"}
    for steps in ("3", "5"):
        command = ["bash", "launch/quickstart.sh", "--schedule.max_steps", steps, "--run.save_every", "2"]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "resumed from" in result.stdout
    report = json.loads((run / "report.json").read_text())
    assert (report["world_size"], report["zero_stage"], report["steps"]) == (2, 2, 5)
    assert report["optimizer"] in {"FusedAdam", "DeepSpeedCPUAdam"}
    assert set(report["loss_first"]) == set(report["loss_last"]) == {"mvm", "mlm", "vtc", "vtm"}
    found = report["retrieval"]
    assert found["queries"] == 24
    assert found["chance_R@1"] == pytest.approx(100 / 24)
    for way in ("t2v", "v2t"):
        recalls = [found["zero_shot"][way][name] for name in ("R@1", "R@5", "R@10")]
        assert 0 <= recalls[0] <= recalls[1] <= recalls[2] <= 100
        assert 1 <= found["zero_shot"][way]["MdR"] <= 24
    assert "zero-shot retrieval, 24 queries" in result.stdout
