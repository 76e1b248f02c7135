"""launch/pretrain.py in which something happens to one rank: `--fault RANK:PLACE:STEP:SIGNAL` before its arguments.

PLACE is data (while it waits for a batch), backward, save (in the middle of writing its file), or end (of the step).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

if __name__ == "__main__":
    import torch

    from launch.pretrain import main
    from simvtp_ds.engine.watchdog import Watchdog
    from simvtp_ds.objectives.pretrain import OfStep, PretrainTask
    from simvtp_ds.process import run_main
    from simvtp_ds.types import Batch, Losses

    option = sys.argv.index("--fault")
    victim, phase, when, number = sys.argv.pop(option + 1).split(":")
    del sys.argv[option]
    at = {"step": 0}
    mark, forward, write = Watchdog.at, PretrainTask.forward, torch.save

    def strike() -> None:
        """The fault, once."""
        at["step"] = -1
        os.kill(os.getpid(), signal.Signals[number])

    def marked(self: Watchdog, place: str, step: int | None = None) -> None:
        """Also remembers the step, and strikes in the data or at the end of it."""
        mark(self, place, step)
        at["step"] = step if step is not None and at["step"] >= 0 else at["step"]
        if at["step"] == int(when) and place == {"data": "the data", "end": "the end"}.get(phase):
            strike()

    def spoilt(self: PretrainTask, batch: Batch, of_step: OfStep | None = None) -> Losses:
        """Strikes when the gradient of the loss arrives."""
        losses = forward(self, batch, of_step)
        if at["step"] == int(when) and phase == "backward":
            losses.total.register_hook(lambda _: strike())
        return losses

    def half(state: Any, path: Any, *more: Any, **named: Any) -> None:
        """Writes the beginning of the file, then strikes."""
        if at["step"] == int(when) and phase == "save":
            Path(path).write_bytes(b"PK" * 500)
            strike()
        write(state, path, *more, **named)

    if os.environ.get("RANK", "0") == victim:
        Watchdog.at, PretrainTask.forward, torch.save = marked, spoilt, half
    run_main(lambda: main(sys.argv[1:]))
