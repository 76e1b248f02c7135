"""Who decodes the clips of a run: worker processes alone (cpu), or DALI on the GPU beside them (dali)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from simvtp_ds.data.dali_decoder import DaliDecoder
from simvtp_ds.data.worker import Decoded, DecoderPool, Task
from simvtp_ds.data_config import DataConfig

REMEDY = "set data.backend to cpu (or auto) to decode in worker processes"


class Decoder(Protocol):
    """Decodes tasks, in no fixed order, into numbered slots that hold a micro batch each."""

    def submit(self, tasks: Iterable[Task]) -> None:
        """Appends tasks to the queue."""
        ...

    def submit_first(self, task: Task) -> None:
        """Puts a task before all others."""
        ...

    def poll(self, wake: Connection, /) -> list[Decoded]:
        """Waits until a task ends, something changes, or `wake` can be read; what ended since the last call."""
        ...

    def take(self, slot: int) -> np.ndarray | Tensor:
        """The clips of a slot without tasks, uint8 [B, T, H, W, 3], in memory of their own."""
        ...


OpenDecoder: TypeAlias = Callable[[DataConfig, tuple[int, ...]], AbstractContextManager[Decoder]]


def choose_backend(data: DataConfig) -> Literal["cpu", "dali"]:
    """What `data.backend` comes to on this machine.

    Raises:
        ValueError: DALI is asked for and cannot be used here.
    """
    if data.backend == "cpu":
        return "cpu"
    obstacle = _obstacle()
    if data.backend == "dali" and obstacle is not None:
        raise ValueError(f"data.backend is dali, and {obstacle}; or {REMEDY}")
    return "cpu" if obstacle is not None else "dali"


def decoder_here(data: DataConfig) -> OpenDecoder:
    """Opens the decoder of this machine and of the GPU that is current here (in another thread it is another)."""
    if choose_backend(data) == "cpu":
        return _open_pool
    return partial(DaliDecoder, device=torch.device("cuda", torch.cuda.current_device()))


def _open_pool(data: DataConfig, shape: tuple[int, ...]) -> DecoderPool:
    return DecoderPool(data.workers, shape, data.decode_timeout, data.storage)


def _obstacle() -> str | None:
    """What stands against DALI here, and what to do about it; None: nothing."""
    if not torch.cuda.is_available():
        return "PyTorch sees no NVIDIA GPU: start on a machine with one"
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    if (name := accelerator.device_name()) != "cuda":
        return f"DeepSpeed trains on {name}: unset DS_ACCELERATOR"
    try:
        import nvidia.dali
    except (ImportError, OSError) as error:
        return f"it cannot be imported ({error}): pip install nvidia-dali-cuda130 (V100: nvidia-dali-cuda120)"
    built_for = int(nvidia.dali.__cuda_version__) // 1000
    if built_for >= 13 and torch.cuda.get_device_capability() < (7, 5):
        return (
            f"its build for CUDA {built_for} has no kernels for {torch.cuda.get_device_name()}: "
            "replace nvidia-dali-cuda130 by nvidia-dali-cuda120"
        )
    return None
