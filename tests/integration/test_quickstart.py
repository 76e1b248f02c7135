"""The quickstart at a size that takes a minute: every command of it, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, no_process_left

pytestmark = pytest.mark.integration


def test_a_killed_quickstart_goes_on_and_ends_in_a_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sizes = {"CLIPS": "256", "TEST_CLIPS": "24", "FINETUNE": "--schedule.max_steps 2 --validation.videos 16"}
    environment = {**os.environ, "VENV": sys.prefix, "RUN": str(run), **sizes}

    def start(steps: int) -> subprocess.Popen[bytes]:
        command = ["bash", "launch/quickstart.sh", "--schedule.max_steps", str(steps), "--run.save_every", "2"]
        with (tmp_path / f"{steps}.txt").open("w") as output:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    first = start(3)
    deadline = time.monotonic() + 300
    while not (run / "zero_shot.json").exists():
        assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "3.txt").read_text()[-3000:]
        time.sleep(0.2)
    with no_process_left(str(run), patience=90):  # ranks of a killed launcher end by themselves
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    second = start(5)
    code = second.wait(timeout=400)
    output = (tmp_path / "5.txt").read_text()
    assert code == 0, output[-3000:]
    assert "resumed from" in output
    report = json.loads((run / "report.json").read_text())
    assert (report["world_size"], report["zero_stage"], report["steps"]) == (2, 2, 5)
    assert report["optimizer"] in {"FusedAdam", "DeepSpeedCPUAdam"}
    assert set(report["loss_first"]) == set(report["loss_last"]) == {"mvm", "mlm", "vtc", "vtm"}
    found = report["retrieval"]
    assert found["queries"] == 24
    assert found["chance_R@1"] == pytest.approx(100 / 24)
    for name in ("zero_shot", "scratch", "finetuned"):
        for way in ("t2v", "v2t"):
            recalls = [found[name][way][recall] for recall in ("R@1", "R@5", "R@10")]
            assert 0 <= recalls[0] <= recalls[1] <= recalls[2] <= 100
            assert 1 <= found[name][way]["MdR"] <= 24
            low, high = found[name][way]["interval"]["R@1"]
            assert low <= recalls[0] <= high
    assert "24 captions, 24 videos" in output
    assert len(list((run / "pictures").glob("*.png"))) >= 4
    predictions = json.loads((run / "pictures" / "predictions.json").read_text())
    assert len(predictions["panels"]) == 4
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4 and "pre-trained and fine-tuned" in page
    last = f"python launch/search.py --checkpoint {run}/finetuned --manifest {run}/data/test"
    assert output.splitlines()[-1] == last
    found = output.split("search: a red circle moves left")[1]
    assert re.search(r"^1\. -?\d\.\d{3}  test/\d{5}\.mp4: \w", found, re.MULTILINE)
    look_at_a_file(run, tmp_path)


def look_at_a_file(run: Path, folder: Path) -> None:
    """What launch/visualize.py makes of a person's file, and of one that is no video."""

    def visualize(clip: Path, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "launch/visualize.py", "--checkpoint", str(run), "--clip", str(clip)]
        command += ["--caption", "a red circle", "--out", str(folder / "pictures"), *more]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    clip = run / "data" / "videos" / "test" / "00001.mp4"
    shown = visualize(clip, "--top", "5", "--word-ratio", "1")
    assert shown.returncode == 0, shown.stderr
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == [
        "000_00001.mp4",
        "000_00001.png",
        "predictions.json",
    ]
    (panel,) = json.loads((folder / "pictures" / "predictions.json").read_text())["panels"]
    assert [word["word"] for word in panel["words"]] == ["a", "red", "circle"]
    assert all(len(guess["top"]) == 5 for word in panel["words"] for guess in word["guesses"].values())
    broken = folder / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:300])
    refused = visualize(broken)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert str(broken) in refused.stderr and "moov" in refused.stderr
