"""How fast the training step is and what it needs, beside the released code's and Hugging Face's VideoMAE.

    python -m simvtp_ds.bench.step --clips 4 --dtypes fp32 --baseline released --out bench
    python -m simvtp_ds.bench.step --clips 16 --dtypes fp32 bf16 --baseline released hf-videomae --also compile

The bare step: forward, backward and AdamW on one process, no DeepSpeed and no data (bench.train has those). Variants
take turns. Prints a table, writes step.json and step.png into DIR, and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from simvtp_ds.bench.cases import BenchError, report_or_error
from simvtp_ds.bench.flops import matmul_peak
from simvtp_ds.bench.inputs import noise_batch
from simvtp_ds.bench.step_chart import plot, table
from simvtp_ds.bench.timing import place, ratio, spread, take_turns
from simvtp_ds.bench.variants import (
    ALSO,
    BASELINES,
    DTYPES,
    OURS,
    Step,
    Took,
    make_step,
    model_flops,
    without_dropout,
)
from simvtp_ds.config_files import PRESETS, load_config
from simvtp_ds.engine.compute import has_liger, takes_varlen
from simvtp_ds.files import replacing
from simvtp_ds.progress import progress

TOLERANCE = 1e-5  # by which the loss in fp32 may differ from the released code's, relative
SAME_LOSS = (OURS, *ALSO, "released")


def measure(options: argparse.Namespace, device: torch.device) -> dict:
    """{"variants": {name: found}, "ratios": {what: ratio}, "matmul_peak": {dtype: operations a second}, ...}."""
    config = without_dropout(load_config(PRESETS / f"{options.preset}.yaml"))
    batch = noise_batch(config, options.clips, options.words)
    kinds = [(name, dtype) for name in (OURS, *options.also) for dtype in options.dtypes]
    kinds += [(name, "fp32") for name in options.baseline]
    names = [f"{name} {dtype}" for name, dtype in kinds]
    steps = {}
    with progress("building", "variants") as told:
        for number, (kind, name) in enumerate(zip(kinds, names, strict=True)):
            told(number, len(kinds))
            steps[name] = make_step(*kind, config, batch, device)
        told(len(kinds), len(kinds))
    peak = {dtype: matmul_peak(DTYPES[dtype], device) for dtype in sorted({dtype for _, dtype in kinds})}
    with progress("timing", "rounds") as told:
        took = take_turns(steps, options.warmup, options.rounds, told)
    _check_losses(took)
    found = {}
    for (kind, dtype), name in zip(kinds, names, strict=True):
        found[name] = _describe(steps[name], took[name], model_flops(kind, config, batch), peak[dtype])
    ratios = {
        f"{baseline} fp32 / {OURS} {dtype}": {
            "seconds": ratio(
                *([run.seconds for run in took[name]] for name in (f"{baseline} fp32", f"{OURS} {dtype}"))
            ),
            "peak_memory": found[f"{baseline} fp32"]["peak_bytes"] / found[f"{OURS} {dtype}"]["peak_bytes"],
        }
        for baseline in options.baseline
        for dtype in options.dtypes
    }
    return {"matmul_peak": peak, "variants": found, "ratios": ratios}


def _describe(step: Step, took: Sequence[Took], flops: int | None, peak: float) -> dict:
    """Medians over the rounds, the peak of the memory, and the share of the matmul peak that became model FLOPs."""
    seconds = spread([run.seconds for run in took])
    return {
        "seconds": seconds,
        "wall_seconds": spread([run.wall for run in took]),
        **{part: spread([getattr(run, part) for run in took]) for part in ("forward", "backward", "optimizer")},
        "loss": took[0].loss,
        "peak_bytes": step.peak(),
        "model_flops": flops,
        "share_of_peak": None if flops is None else flops / seconds["median"] / peak,
    }


def _check_losses(took: dict[str, list[Took]]) -> None:
    """BenchError where two variants that should compute the same in fp32 do not."""
    losses = {name: runs[0].loss for name, runs in took.items() if name in {f"{n} fp32" for n in SAME_LOSS}}
    for name, loss in losses.items():
        other, expected = next(iter(losses.items()))
        if abs(loss - expected) > TOLERANCE * abs(expected):
            raise BenchError(f"{name} has the loss {loss}, {other} has {expected}: they do not compute the same step")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="pretrain_webvid", help="sizes and masks (default: %(default)s)")
    p.add_argument("--clips", metavar="B", type=int, default=4, help="micro batch (default: %(default)s)")
    p.add_argument("--words", metavar="L", type=int, default=20, help="of the longest caption (default: %(default)s)")
    p.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32"], help="of our step (default: fp32)")
    p.add_argument("--baseline", nargs="+", choices=BASELINES, default=[], help="in fp32, as released")
    p.add_argument("--also", nargs="+", choices=ALSO, default=[], help="ours with the encoder called pass by pass; "
                   "with attention over segments (GPU, fp16 or bf16); with Liger's loss (GPU); with blocks recomputed; "
                   "compiled")  # fmt: skip
    p.add_argument("--rounds", metavar="R", type=int, default=5, help="repetitions (default: %(default)s)")
    p.add_argument("--warmup", metavar="R", type=int, default=1, help="rounds before them (default: %(default)s)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    p.add_argument("--out", metavar="DIR", type=Path, default=Path("bench"), help="default: %(default)s")
    return p


def run(options: argparse.Namespace) -> dict:
    """The report, also written to OUT/step.json and OUT/step.png.

    Raises:
        BenchError, ValueError: nothing can be timed. OSError: OUT cannot be written.
    """
    for name, least in (("clips", 2), ("words", 3), ("rounds", 1), ("warmup", 1)):
        if getattr(options, name) < least:
            raise BenchError(f"--{name} is {getattr(options, name)}; give at least {least}")
    if options.device == "cpu" and "fp16" in options.dtypes:
        raise BenchError("--dtypes fp16 on a CPU tells nothing of a GPU; give fp32 or bf16")
    if "varlen" in options.also and (options.device == "cpu" or not all(map(takes_varlen, options.dtypes))):
        raise BenchError(
            "--also varlen runs on a GPU from Ampere on in fp16 or bf16 only; leave it out, or give --dtypes bf16"
        )
    if "liger" in options.also and (options.device == "cpu" or not has_liger()):
        raise BenchError("--also liger needs a GPU and the package liger-kernel; leave it out")
    device = torch.device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    with replacing(options.out / "step.json") as temporary:
        temporary.touch()  # what cannot be written is found now, not in minutes
        report = {"bench": "step", **place(device), "preset": options.preset, "clips": options.clips}
        report |= {"words": options.words, "warmup": options.warmup, "runs": options.rounds}
        report |= measure(options, device)
        temporary.write_text(json.dumps(report) + "\n")
    plot(report, options.out / "step.png")
    return report


def main() -> None:
    """Reads the command line, prints the table and the JSON line."""
    report_or_error(lambda: run(parser().parse_args()), table, BenchError, ValueError, OSError)


if __name__ == "__main__":
    main()
