"""The scaling bench as a person runs it: real launches on one and on two ranks (45 s on two cores)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import pytest

from tests.integration.conftest import deepspeed_json
from tests.integration.test_plan import MODEL, succeed

pytestmark = pytest.mark.slow


def test_scaling_trains_on_one_and_on_two_ranks_and_draws_them(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(deepspeed_json(micro=2)))
    command = [sys.executable, "-m", "simvtp_ds.bench.scaling", "--deepspeed_config", str(path), "--ranks", "2", *MODEL]
    command += ["--rounds", "1", "--steps", "2", "--out", str(tmp_path / "out")]
    lines = succeed(*command)
    report = json.loads(lines[-1])
    assert report == json.loads((tmp_path / "out/scaling.json").read_text())
    assert [(row["kind"], row["ranks"], row["micro_batch"]) for row in report["rows"]] == [
        ("weak", 1, 2),
        ("weak", 2, 2),
    ]
    assert all(row["clips_per_s"] > 0 and row["steps"] == 2 for row in report["rows"])
    assert any("2 ranks at most on this machine" in line for line in lines)
    assert cv2.imread(str(tmp_path / "out/scaling.png")) is not None
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["scaling.json", "scaling.png"]
