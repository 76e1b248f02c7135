"""The most memory that torch's allocator had handed out at a time: the same measure on a CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_memory(run: Callable[[], object], device: torch.device, held: Iterable[Tensor]) -> int:
    """Bytes at the peak of `run`.

    A GPU's allocator keeps the count itself. On a CPU the profiler tells every allocation of a tensor, from which it
    follows exactly; scratch memory that MKL and oneDNN take for themselves is not in it, nor are Python and libraries.

    Args:
        run: What to measure, with its allocations on this thread or autograd's.
        device: Where it computes.
        held: The tensors that live before: weights, optimizer states, batch (and gradients, if there are any).
    """
    if device.type == "cuda":
        others = torch.cuda.memory_allocated(device) - held_bytes(held := list(held))
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - others
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    live = peak = held_bytes(held)
    results: Any = profiler.profiler and profiler.profiler.kineto_results  # torch's stubs lack an event's bytes
    for event in sorted(results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' memory, shared memory counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
