"""The ranks of an evaluation, joined for as long as it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from simvtp_ds.engine.ranks import Control, Rank, connect
from simvtp_ds.evaluation.share import Share

START_TIMEOUT = 300.0  # seconds that ranks wait for each other at the start


@contextmanager
def connected(rank: Rank, timeout: float) -> Iterator[tuple[Share, str]]:
    """This rank's share of the work and its device, such as cuda:0.

    Args:
        rank: This process.
        timeout: Seconds that a rank waits for the others.

    Raises:
        ConnectionError: while working: another rank has ended, or kept this one waiting too long.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    if rank.world_size == 1:
        yield Share.alone(), accelerator.current_device_name()
        return
    import torch.distributed as dist

    connect(rank, min(timeout, START_TIMEOUT))
    control = Control(timeout)

    def gather(value: Any) -> list[Any]:
        try:
            return control.gather(value)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ConnectionError(f"another rank has ended, or is {timeout:g} s late ({reason})") from error

    yield Share(rank.rank, rank.world_size, gather), accelerator.current_device_name()
    dist.destroy_process_group()
