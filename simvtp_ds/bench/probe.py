"""Tries one setting in a process of its own, which may die of it: a step of the training, or the feeding of clips.

bench.autotune starts it; ends in one JSON line, or with a code that says why not.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from simvtp_ds.bench.cases import BenchError
from simvtp_ds.bench.inputs import build_task, noise_batch
from simvtp_ds.bench.options import bench_parser, parsed
from simvtp_ds.bench.trials import OUT_OF_MEMORY
from simvtp_ds.config import PretrainConfig
from simvtp_ds.data.backend import choose_backend
from simvtp_ds.data.loader import DataError, Loader
from simvtp_ds.ds_settings import DeepSpeedSettings, check_accelerator, load_settings
from simvtp_ds.engine.compute import apply, check_compute
from simvtp_ds.engine.deepspeed_engine import start_engine
from simvtp_ds.engine.meters import memory_gib
from simvtp_ds.engine.pretrain import pretraining_job
from simvtp_ds.engine.ranks import Rank, connect, find_rank
from simvtp_ds.model.blocks import use_fast_norm_if_available
from simvtp_ds.model.params import parameter_groups
from simvtp_ds.process import run_main
from simvtp_ds.types import to_device

WARMUP, STEPS = 2, 3
TIMEOUT = 900.0


def step_rate(config: PretrainConfig, settings: DeepSpeedSettings, rank: Rank) -> dict[str, float]:
    """Clips a second of all ranks, without data, and the memory of this one; captions are as long as they may be."""
    torch.manual_seed(0)
    use_fast_norm_if_available()
    task = build_task(config)
    apply(config.compute, task)
    batch = noise_batch(config, settings.micro_batch, config.data.max_words, seed=rank.rank)
    engine = start_engine(task, parameter_groups(task, settings.weight_decay), settings)
    place = engine.device if choose_backend(config.data) == "dali" else torch.device("cpu")
    # What the loader holds ready: written to, so that it is there.
    ahead = [torch.ones_like(batch.frames, device=place) for _ in range(config.data.prefetch + 1)]
    seconds: list[float] = []
    for _ in range(WARMUP + STEPS):
        started = time.perf_counter()
        for _ in range(settings.accumulation):
            loss = engine(to_device(batch, engine.device)).total
            engine.backward(loss)
            engine.step()
        float(loss)  # waits for the device
        seconds.append(time.perf_counter() - started)
    del ahead
    clips = settings.global_batch(rank.world_size)
    return {"clips_per_s": clips / min(seconds[WARMUP:]), "memory_gib": memory_gib(engine.device)}


def feed_rate(config: PretrainConfig, settings: DeepSpeedSettings, seconds: float) -> dict[str, float]:
    """Clips (views) a second that the loader gives one rank, and nothing else to do."""
    job = pretraining_job(config, settings, 1)
    loader = Loader(job.examples, config.data, settings.micro_batch, 1, rank=0, world_size=1)
    batches = iter(loader)
    for _ in range(config.data.prefetch + 1):  # decoders start, and what is ready is taken
        next(batches)
    started, taken = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds or not taken:
        next(batches)
        taken += settings.micro_batch
    loader.close()
    return {"clips_per_s": taken / passed}


def limit_memory(gib: float) -> None:
    """From here on this process gets no more than that; and where memory runs out, the kernel ends it before others."""
    Path("/proc/self/oom_score_adj").write_text("1000")
    if gib:
        size = int(gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def main(arguments: list[str]) -> int:
    """Exit code."""
    parser = bench_parser(arguments, __doc__ or "", "%(prog)s --deepspeed_config FILE [--FIELD VALUE ...]")
    parser.add_argument("--feed", type=float, default=0.0, help="seconds to feed clips; 0: make steps instead")
    parser.add_argument("--memory_gib", type=float, default=0.0, help="of a rank, on CPUs; 0: no limit")
    parser.add_argument("--local_rank", type=int, default=-1, help="set by the launcher")
    try:
        config, options = parsed(parser, arguments)
        rank = find_rank()
        settings = load_settings(options.deepspeed_config, rank.world_size)
        check_accelerator(settings)
        check_compute(config.compute, settings)
        limit_memory(options.memory_gib)
        if options.feed:
            found: dict[str, Any] = feed_rate(config, settings, options.feed)
        else:
            connect(rank, TIMEOUT)
            found = step_rate(config, settings, rank)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, DataError) or not _no_memory(error):
            raise
        print(f"out of memory: {error}", flush=True)
        return OUT_OF_MEMORY
    except (BenchError, ValueError) as error:
        print(f"error: {error}", flush=True)
        return 1
    if rank.is_main:
        print(json.dumps(found), flush=True)
    return 0


def _no_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "Cannot allocate memory", "start new thread")
    )


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
