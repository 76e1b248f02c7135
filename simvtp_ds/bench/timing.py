"""What the benches of the training step share: variants that take turns, medians, and where they were measured."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from simvtp_ds.engine.run import source_commit

Found = TypeVar("Found")


def take_turns(
    variants: Mapping[str, Callable[[], Found]], warmup: int, runs: int, told: Callable[[int, int], None]
) -> dict[str, list[Found]]:
    """What each variant gave in each of its runs, those of the warm-up left out.

    A busy machine slows neighbours alike: every round runs each variant once, and another one is first each time.

    Args:
        variants: What to run, by name.
        warmup: Rounds that do not count.
        runs: Rounds that do.
        told: Called with (rounds done, rounds).
    """
    names = list(variants)
    found: dict[str, list[Found]] = {name: [] for name in names}
    for number in range(warmup + runs):
        told(number, warmup + runs)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            result = variants[name]()
            if number >= warmup:
                found[name].append(result)
    told(warmup + runs, warmup + runs)
    return found


def clock(device: torch.device) -> float:
    """Seconds, when `device` has done what it was given.

    On a CPU they are processor seconds over threads. On an idle machine that is the time on the wall; on a busy one,
    with one thread, it leaves out the time that the processor was with others.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, and the range over the median."""
    middle = median(values)
    return {"median": middle, "spread": (max(values) - min(values)) / middle if middle else 0.0}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Of two variants that took turns: `spread` of slow / fast, round by round."""
    return spread([one / other for one, other in zip(slow, fast, strict=True)])


def place(device: torch.device) -> dict[str, Any]:
    """Where and with what: device, threads, load, versions, commit; for the JSON line."""
    return {
        "commit": source_commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # above `threads`, other work took turns with this
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "deepspeed", "timm", "transformers")},
    }


def processor() -> str:
    """The processor's name, and the vector instructions that torch uses on it."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
