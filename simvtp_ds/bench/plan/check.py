"""Holds the plan's counts against a step that really runs here: memory, operations, time.

    python -m simvtp_ds.bench.plan.check --deepspeed_config ds_configs/zero2_bf16.json
    deepspeed --num_accelerators 2 --module simvtp_ds.bench.plan.check --deepspeed_config FILE [--FIELD VALUE ...]

DeepSpeed's engine makes three steps of a batch of noise. Prints a table and ends in one JSON line. Memory is what
torch's allocator hands out on rank 0: tensors, neither Python nor libraries.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from simvtp_ds.bench.cases import BenchError
from simvtp_ds.bench.flops import count_flops, matmul_peak
from simvtp_ds.bench.inputs import build_task, noise_batch
from simvtp_ds.bench.memory import peak_memory
from simvtp_ds.bench.options import add_words, bench_parser, parsed
from simvtp_ds.bench.plan.memory import memory
from simvtp_ds.bench.plan.step import DTYPES, count_step
from simvtp_ds.bench.timing import place
from simvtp_ds.config import PretrainConfig
from simvtp_ds.ds_settings import DeepSpeedSettings, check_accelerator, load_settings
from simvtp_ds.engine.compute import apply, check_compute
from simvtp_ds.engine.deepspeed_engine import start_engine
from simvtp_ds.engine.ranks import Rank, connect, find_rank
from simvtp_ds.model.blocks import use_fast_norm_if_available
from simvtp_ds.model.params import parameter_groups
from simvtp_ds.process import run_main
from simvtp_ds.types import to_device

MIB = 2**20
TIMEOUT = 600.0  # seconds without a step


def check(
    config: PretrainConfig, settings: DeepSpeedSettings, words: int, rank: Rank, timed: bool = False
) -> dict[str, Any]:
    """Predicted and measured, of this rank; all ranks call it together. `timed`: the seconds of a step, too."""
    clips = settings.micro_batch
    step = count_step(config, clips, words, settings.dtype)
    predicted = memory(step, settings, rank.world_size)
    earlier = {tensor.untyped_storage().data_ptr() for tensor in living()}  # of an engine before this one
    torch.manual_seed(0)
    use_fast_norm_if_available()
    task = build_task(config)
    apply(config.compute, task)
    batch = noise_batch(config, clips, words, seed=rank.rank)
    engine = start_engine(task, parameter_groups(task, settings.weight_decay), settings)
    batch = to_device(batch, engine.device)

    def one_step() -> None:
        loss = engine(batch).total
        engine.backward(loss)
        engine.step()

    one_step()  # makes the optimizer's states
    started = time.perf_counter()
    one_step()
    seconds = time.perf_counter() - started
    held = [tensor for tensor in living() if tensor.untyped_storage().data_ptr() not in earlier]
    measured = peak_memory(one_step, engine.device, held)
    with sdpa_kernel(SDPBackend.MATH):  # attention as plain products, which torch's counter knows on every device
        flops = count_flops(one_step)
    on_this_memory = predicted.peak + (predicted.host if engine.device.type == "cpu" else 0)
    found: dict[str, Any] = {
        "memory": {"predicted": on_this_memory, "measured": measured},
        "flops": {"predicted": step.work.total_flops, "measured": flops},
        "parts_gib": predicted.gib(),
    }
    if timed:
        rate, copying = matmul_peak(DTYPES[settings.dtype], engine.device), copy_rate(engine.device)
        found["seconds"] = {"predicted": step.work.seconds(rate, copying), "measured": seconds}
        found |= {"matmul_flops_per_s": rate, "copied_bytes_per_s": copying}
    return found


def living() -> list[Tensor]:
    """The tensors with memory that Python knows of."""
    gc.collect()
    found = []
    for thing in gc.get_objects():
        if isinstance(thing, Tensor) and thing.device.type != "meta":
            found.append(thing)
    return found


def copy_rate(device: torch.device) -> float:
    """Bytes read and written a second by a copy too large for a cache; the best of 5."""
    source = torch.zeros(2**26, device=device)
    target, best = torch.empty_like(source), 0.0
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - started))
    return best


def table(found: dict[str, Any]) -> str:
    """Markdown, a row a quantity."""
    rows = [("memory, MiB", "memory", MIB), ("operations, GFLOP", "flops", 1e9), ("seconds a step", "seconds", 1.0)]
    lines = ["| | predicted | measured | predicted / measured |", "|---|---|---|---|"]
    for name, key, unit in rows:
        if key not in found:
            continue
        predicted, measured = found[key]["predicted"], found[key]["measured"]
        lines.append(f"| {name} | {predicted / unit:.4g} | {measured / unit:.4g} | {predicted / measured:.3f} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Reads the command line, prints the table and the JSON line."""
    try:
        parser = bench_parser(
            arguments, __doc__ or "", "%(prog)s --deepspeed_config FILE [--preset NAME] [--words L] [--FIELD VALUE ...]"
        )
        add_words(parser)
        parser.add_argument("--time", action="store_true", help="also the seconds of a step, from rates measured here")
        parser.add_argument("--local_rank", type=int, default=-1, help="set by the launcher")
        config, options = parsed(parser, arguments)
        rank = find_rank()
        settings = load_settings(options.deepspeed_config, rank.world_size)
        check_accelerator(settings)
        check_compute(config.compute, settings)
    except (BenchError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    connect(rank, TIMEOUT)
    found = check(config, settings, options.words, rank, options.time)
    if rank.is_main:
        report = {"bench": "plan.check", **place(torch.device("cpu")), "deepspeed_config": options.deepspeed_config}
        report |= {"ranks": rank.world_size, "clips": settings.micro_batch, "words": options.words, **found}
        print(table(found))
        print(json.dumps(report))


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
