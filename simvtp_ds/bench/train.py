"""Training end to end through DeepSpeed: clips a second, who waits for whom, and what the engine costs.

    python -m simvtp_ds.bench.train --deepspeed_config ds_configs/zero2_fp32.json --clips 4 --out bench

Renders videos, prepares them and trains on them with the real loader, engine, meters and log; one process. The first
rounds run as training does. Between the steps of the later rounds the bare step (forward, backward, AdamW, no
DeepSpeed) runs on the same batch, so that the engine's overhead is measured beside it. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from simvtp_ds.bench.cases import BenchError, report_or_error
from simvtp_ds.bench.engine_time import StepTime, TimedTrainer
from simvtp_ds.bench.inputs import VOCABULARY, noise_batch
from simvtp_ds.bench.rendered import rendered_corpus
from simvtp_ds.bench.timing import place, spread
from simvtp_ds.bench.variants import DTYPES, Step
from simvtp_ds.config import PretrainConfig
from simvtp_ds.config_files import PRESETS, load_config
from simvtp_ds.data.loader import DataError
from simvtp_ds.ds_settings import check_accelerator, load_settings
from simvtp_ds.engine.compute import apply
from simvtp_ds.engine.failures import TrainingError
from simvtp_ds.engine.pretrain import pretraining_job
from simvtp_ds.engine.ranks import find_rank
from simvtp_ds.engine.run import train
from simvtp_ds.engine.watchdog import Watchdog
from simvtp_ds.files import replacing
from simvtp_ds.process import run_main
from simvtp_ds.progress import progress

FRAMES = 90  # of a rendered video
PARTS = ("data_wait", "forward", "backward", "step", "rest")


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """What `run` reports of the times."""
    settings_file = folder / "deepspeed.json"
    raw = json.loads(Path(options.deepspeed_config).read_text())
    raw |= {"train_micro_batch_size_per_gpu": options.clips, "gradient_accumulation_steps": 1}
    settings_file.write_text(json.dumps(raw))
    rank = find_rank()
    settings = load_settings(settings_file, rank.world_size)
    check_accelerator(settings)
    with progress("rendering", "videos") as told:
        manifest = rendered_corpus(folder, 2 * options.clips, FRAMES, options.words, VOCABULARY, told)

    config: PretrainConfig = load_config(PRESETS / f"{options.preset}.yaml")
    steps = options.warmup + 2 * options.rounds
    config = replace(
        config,
        data=replace(config.data, manifest=str(manifest), workers=options.workers),
        schedule=replace(config.schedule, max_steps=steps, warmup_epochs=0),
        run=replace(config.run, dir=str(folder / "run"), log_every=1),
    )
    job = pretraining_job(config, settings, rank.world_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def bare() -> Step:
        task, _ = job.build()
        apply(config.compute, task)
        return Step(task, noise_batch(config, options.clips, options.words), DTYPES[settings.dtype], device)

    times: list[StepTime] = []
    trainer = partial(TimedTrainer, bare=bare, alone=options.warmup + options.rounds, times=times)
    with Watchdog(rank, config.run.step_timeout) as watchdog:
        train(replace(job, trainer=trainer), rank, "none", watchdog)
    times = times[options.warmup :]
    alone, beside = times[: options.rounds], times[options.rounds :]
    return {"zero_stage": settings.zero_stage, "dtype": settings.dtype, **_report(options.clips, alone, beside)}


def _report(clips: int, alone: Sequence[StepTime], beside: Sequence[StepTime]) -> dict:
    """Medians of the steps as training makes them, and of those beside which a bare step was made."""
    seconds = spread([step.total for step in alone])
    overhead = spread([step.busy / step.bare for step in beside])
    return {
        "seconds": seconds,
        "clips_per_s": clips / seconds["median"],
        "shares": {part: spread([getattr(step, part) / step.total for step in alone])["median"] for part in PARTS},
        "bare_seconds": spread([step.bare for step in beside]),
        "engine_over_bare": overhead,
    }


def table(report: dict) -> str:
    """Markdown."""
    shares = " | ".join(f"{report['shares'][part]:.1%}" for part in PARTS)
    return (
        "| clips/s | seconds a step (spread) | waits for data | forward | backward | engine.step | rest |\n"
        "|---|---|---|---|---|---|---|\n"
        f"| {report['clips_per_s']:.2f} | {report['seconds']['median']:.2f} ({report['seconds']['spread']:.0%}) | "
        f"{shares} |\n\nEngine, meters, log and data over the bare step: {report['engine_over_bare']['median']:.3f} "
        f"(spread {report['engine_over_bare']['spread']:.1%}), waits for data left out."
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--deepspeed_config", required=True, help="its micro batch is replaced by --clips, accumulation by 1"
    )
    p.add_argument("--preset", default="pretrain_webvid", help="sizes and masks (default: %(default)s)")
    p.add_argument("--clips", metavar="B", type=int, default=4, help="micro batch (default: %(default)s)")
    p.add_argument("--words", metavar="L", type=int, default=20, help="of the longest caption (default: %(default)s)")
    p.add_argument("--workers", metavar="N", type=int, default=2, help="decoder processes (default: %(default)s)")
    p.add_argument("--rounds", metavar="R", type=int, default=5, help="steps of each kind (default: %(default)s)")
    p.add_argument("--warmup", metavar="R", type=int, default=2, help="steps before them (default: %(default)s)")
    p.add_argument("--out", metavar="DIR", type=Path, default=Path("bench"), help="default: %(default)s")
    return p


def run(options: argparse.Namespace) -> dict:
    """The report, also written to OUT/train.json.

    Raises:
        BenchError, ValueError, TrainingError, DataError: nothing can be timed.
        OSError: a file cannot be read or written.
    """
    for name, least in (("clips", 2), ("words", 3), ("workers", 1), ("rounds", 1), ("warmup", 1)):
        if getattr(options, name) < least:
            raise BenchError(f"--{name} is {getattr(options, name)}; give at least {least}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BenchError("bench.train is for one process; bench.scaling compares several")
    options.out.mkdir(parents=True, exist_ok=True)
    with replacing(options.out / "train.json") as temporary, TemporaryDirectory(prefix="simvtp-bench-") as folder:
        temporary.touch()  # what cannot be written is found now, not in minutes
        measured = measure(options, Path(folder))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        report = {"bench": "train", **place(device), "preset": options.preset, "clips": options.clips}
        report |= {"words": options.words, "workers": options.workers, "warmup": options.warmup}
        report |= {"runs": options.rounds, **measured}
        temporary.write_text(json.dumps(report) + "\n")
    return report


def main() -> None:
    """Reads the command line, prints the table and the JSON line."""
    report_or_error(
        lambda: run(parser().parse_args()), table, BenchError, ValueError, TrainingError, DataError, OSError
    )


if __name__ == "__main__":
    run_main(main)
