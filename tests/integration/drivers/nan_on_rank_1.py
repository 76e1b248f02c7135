"""launch/pretrain.py whose rank 1 has a loss that is not a number in the steps NAN_STEPS (1,2,...)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

if __name__ == "__main__":
    from launch.pretrain import main
    from simvtp_ds.objectives.pretrain import OfStep, PretrainTask
    from simvtp_ds.process import run_main
    from simvtp_ds.types import Batch, Losses

    wrong = {int(step) for step in os.environ["NAN_STEPS"].split(",")}
    forward = PretrainTask.forward
    calls = 0

    def poisoned(self: PretrainTask, batch: Batch, of_step: OfStep | None = None) -> Losses:
        """The real forward pass; its result is spoilt in the wrong steps."""
        global calls
        calls += 1
        losses = forward(self, batch, of_step)
        if os.environ["RANK"] == "1" and calls in wrong:
            nan = float("nan")
            return losses._replace(total=losses.total * nan, mlm=losses.mlm * nan)
        return losses

    PretrainTask.forward = poisoned
    run_main(lambda: main(sys.argv[1:]))
