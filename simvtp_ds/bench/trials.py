"""What the autotuner tries next, and what the end of a trial means."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from simvtp_ds.bench.cases import BenchError

NEAR = 0.97  # of the best rate: fewer workers are taken if they come that near
OUT_OF_MEMORY = 12  # exit code of bench.probe, errno's ENOMEM
KILLED = (-9, 137, 247)  # by the kernel: the process itself, a shell's and the launcher's way to say it


class Trial(NamedTuple):
    """What one setting came to. `found` is None where it did not fit."""

    setting: dict[str, Any]
    found: dict[str, float] | None
    reason: str = ""


def largest_that_fits(fits: Callable[[int], bool], unit: int, least: int, largest: int) -> int:
    """The largest multiple of `unit` in [least, largest] that fits, within an eighth; 0 if not even `least` does.

    Doubles until one does not fit, then halves the gap. What is larger than one that does not fit is taken not to.
    """
    best, size = 0, least
    while size <= largest and fits(size):
        best, size = size, 2 * size
    too_much = min(size, largest + unit)
    while best and too_much - best > max(unit, best // 8):
        middle = best + (too_much - best) // 2 // unit * unit
        if fits(middle):
            best = middle
        else:
            too_much = middle
    return best


def keeping(global_batch: int, ranks: int, largest: int, unit: int) -> tuple[int, int] | None:
    """Micro batch and accumulation that make `global_batch` exactly, the micro batch as large as may be; or None."""
    if global_batch % ranks:
        return None
    share = global_batch // ranks
    fitting = [micro for micro in range(unit, largest + 1, unit) if share % micro == 0 and micro >= 2]
    return (max(fitting), share // max(fitting)) if fitting else None


def judge(code: int, output: str, setting: dict[str, Any]) -> Trial:
    """What a probe's end means.

    Raises:
        BenchError: It failed for another reason than memory.
    """
    if code == 0:
        lines = [line for line in output.splitlines() if line.startswith("{")]
        return Trial(setting, json.loads(lines[-1]))
    told = next((line for line in output.splitlines() if "out of memory" in line.lower()), "")
    if told or code in (OUT_OF_MEMORY, *KILLED):
        return Trial(setting, None, told[:120] or f"ended with {code}")
    raise BenchError(f"{setting} failed with {code}:\n" + "\n".join(output.splitlines()[-20:]))


def fastest(trials: Sequence[Trial]) -> Trial | None:
    """The one with the fewest workers of those that come near the best rate."""
    ended = [trial for trial in trials if trial.found]
    best = max((trial.found["clips_per_s"] for trial in ended if trial.found), default=0.0)
    near = [trial for trial in ended if trial.found and trial.found["clips_per_s"] >= NEAR * best]
    return min(near, key=lambda trial: trial.setting["workers"], default=None)


def worker_counts(cores: int) -> list[int]:
    """1, 2, 4 ... and all cores of a rank."""
    return sorted({2**n for n in range(cores.bit_length())} | {max(1, cores)})


def free_gib() -> float:
    """Memory that this machine or its control group has left, in GiB."""
    info = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(info["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    most, used = group / "memory.max", group / "memory.current"
    if most.is_file() and (limit := most.read_text().strip()) != "max":
        free = min(free, int(limit) - int(used.read_text()))
    return free / 2**30
