"""A rank that does nothing but meet the others; the second one fails as its argument says. Run by test_watchdog.py."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))


def main() -> None:
    """Collectives until something happens."""
    import torch
    import torch.distributed as dist

    from simvtp_ds.engine import watchdog
    from simvtp_ds.engine.ranks import find_rank
    from simvtp_ds.launching import one_line

    watchdog.BEAT, watchdog.SILENCE = 0.2, 1.0
    fault, rank = sys.argv[1], find_rank()
    if fault == "absent" and not rank.is_main:
        raise SystemExit(1)
    with one_line(watchdog.TrainingError), watchdog.Watchdog(rank, 4.0) as watch:
        dist.init_process_group("gloo", timeout=timedelta(seconds=20))
        for step in range(1, 1000):
            watch.at("the data", step)
            if step == 10 and not rank.is_main:
                if fault == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if fault == "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
                if fault == "raises":
                    raise KeyError("no such clip")
                if fault == "slow":
                    time.sleep(30)
            watch.at("the end")
            dist.all_reduce(torch.ones(1))
            watch.feed()
            time.sleep(0.05)


if __name__ == "__main__":
    from simvtp_ds.process import run_main

    run_main(main)
