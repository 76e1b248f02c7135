"""How long a checkpoint keeps a run waiting, and what writing it in the background would leave of that.

    python -m simvtp_ds.bench.save --deepspeed_config ds_configs/zero2_bf16.json [--depth 24] [--out DIR]

One process. A background writer would still have to copy the state into memory that training does not touch; that
copy is timed in turn with the real save. The last line is JSON: seconds of both, medians of the rounds with their
range, and the sha256's share.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from simvtp_ds.bench.cases import BenchError
from simvtp_ds.config import ModelConfig, ObjectiveConfig
from simvtp_ds.ds_settings import check_accelerator, load_settings
from simvtp_ds.engine.checkpoint import Position
from simvtp_ds.engine.deepspeed_engine import start_engine
from simvtp_ds.engine.ranks import Control, connect, find_rank
from simvtp_ds.engine.saving import save
from simvtp_ds.files import sha256
from simvtp_ds.model.params import parameter_groups
from simvtp_ds.model.simvtp import SimVTP
from simvtp_ds.objectives.pretrain import PretrainTask
from simvtp_ds.process import run_main

TIMEOUT = 600.0  # seconds
FRAMES, SIZE, VOCABULARY = 16, 224, 30522


def state_of(engine: Any) -> list[torch.Tensor]:
    """The tensors that a checkpoint of this rank holds."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    masters = [p for group in inner.param_groups for p in group["params"]]
    moments = [value for state in inner.state.values() for value in state.values() if torch.is_tensor(value)]
    return [*engine.module.parameters(), *masters, *moments]


def measure(model: ModelConfig, deepspeed_config: str, rounds: int, folder: Path) -> dict[str, Any]:
    """The report.

    Raises:
        ValueError: the DeepSpeed JSON cannot be used.
    """
    rank = find_rank()
    settings = load_settings(deepspeed_config, rank.world_size)
    check_accelerator(settings)
    connect(rank, TIMEOUT)
    control = Control(TIMEOUT)
    task = PretrainTask(SimVTP(model, FRAMES, SIZE, VOCABULARY), ObjectiveConfig())
    engine = start_engine(task, parameter_groups(task, settings.weight_decay), settings, universal=False)
    times: dict[str, list[float]] = {"save": [], "copy": [], "hash": []}
    written = 0
    for step in range(1, rounds + 2):
        began = time.perf_counter()
        copied = [tensor.detach().to("cpu", copy=True) for tensor in state_of(engine)]
        times["copy"].append(time.perf_counter() - began)
        del copied
        position = Position(step, rank.world_size, settings.zero_stage, settings.dtype, 0, 0, "", "")
        began = time.perf_counter()
        saved = save(engine, folder, position, rank, control, keep=1)
        times["save"].append(time.perf_counter() - began)
        began = time.perf_counter()
        for path in saved.iterdir():
            sha256(path)
        times["hash"].append(time.perf_counter() - began)
        written = sum(path.stat().st_size for path in saved.iterdir())
    report = {
        "bench": "save",
        "parameters": sum(p.numel() for p in task.parameters()),
        "dtype": settings.dtype,
        "zero_stage": settings.zero_stage,
        "gib": written / 2**30,
        "rounds": rounds,
    }
    for name, values in times.items():
        kept = values[1:]  # the first one warms up
        report |= {f"{name}_s": median(kept), f"{name}_range_s": [min(kept), max(kept)]}
    return report | {"copy_over_save": report["copy_s"] / report["save_s"]}


def main() -> None:
    """Reads the command line, prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepspeed_config", default="ds_configs/zero2_bf16.json", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions (default: %(default)s)")
    parser.add_argument("--depth", type=int, default=ModelConfig().depth, help="blocks (default: %(default)s, ViT-B)")
    parser.add_argument("--out", default=None, help="folder on the disk to be timed (default: the temporary one)")
    options = parser.parse_args()
    try:
        if options.rounds < 1:
            raise BenchError(f"--rounds is {options.rounds}; give at least 1")
        with tempfile.TemporaryDirectory(prefix="simvtp-bench-", dir=options.out) as folder:
            report = measure(ModelConfig(depth=options.depth), options.deepspeed_config, options.rounds, Path(folder))
    except (ValueError, BenchError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print(json.dumps(report))


if __name__ == "__main__":
    run_main(main)
