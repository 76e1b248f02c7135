"""A host that is gone for good: the supervisor goes on with the others, keeping the global batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Launcher, corpus, deepspeed_json, free_port, launcher, losses
from tests.multihost.hosts import hosts, workers

__all__ = ["corpus", "launcher"]
pytestmark = pytest.mark.slow
FIELDS = {"schedule.max_steps": 60, "run.save_every": 5, "run.step_timeout": 40, "model.text_dropout": 0.0}


def test_a_run_over_two_hosts_is_finished_by_the_one_that_is_left(launcher: Launcher, tmp_path: Path) -> None:
    fields: dict[str, Any] = {name.replace(".", "__"): value for name, value in FIELDS.items()}
    whole = launcher.torchrun("whole", deepspeed_json(), **fields)
    whole.succeed()
    with hosts(tmp_path, workers(2)) as made:
        arguments = launcher.arguments("launch/pretrain.py", "fewer", deepspeed_json(), FIELDS)
        hostfile = made.hostfile()
        given = hostfile.read_bytes()
        deepspeed = ["deepspeed", f"--hostfile={hostfile}", f"--master_port={free_port()}", "launch/pretrain.py"]
        supervise = ["python", "launch/supervise.py", "--wait", "1", "--min-hosts", "1", "--", *deepspeed]
        launch = launcher.start(made.command([*supervise, *arguments]), "fewer")
        launch.wait_for_step(8)
        made.cut("worker-1")  # the first one, with rank 0
        launch.succeed(timeout=400)
        made.restore("worker-1")
        assert hostfile.read_bytes() == given
    events = [json.loads(line) for line in (launch.run / "supervise.jsonl").read_text().splitlines()]
    starts = [event for event in events if event["event"] == "start"]
    print(json.dumps(events))
    # In between there may be starts that find the folder in use: worker-1 goes on until its watchdog ends it.
    assert [(start["ranks"], start["dropped"]) for start in (starts[0], starts[-1])] == [(2, []), (1, ["worker-1"])]
    for step, values in losses(whole.run).items():
        assert losses(launch.run)[step] == pytest.approx(values, abs=1e-5), f"step {step}"
