"""The largest micro batch that fits on this machine, and who decodes clips fastest: the lines to write down.

    python -m simvtp_ds.bench.autotune --deepspeed_config ds_configs/zero2_bf16.json --data.manifest data/mine

Every trial is a process of its own (all ranks of one through DeepSpeed's launcher), so one that dies of its memory
takes nothing with it. Steps are those of the real engine over noise, with captions as long as data.max_words; clips
are fed by the real loader. On a GPU its memory is the limit; on CPUs --memory_gib a rank. Every field of pre-training
is an option. Prints what it tried and ends in one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from simvtp_ds.bench.cases import BenchError, report_or_error
from simvtp_ds.bench.launched import Ranks, launch_command, run_command
from simvtp_ds.bench.options import bench_parser, parsed, training_fields
from simvtp_ds.bench.trials import Trial, fastest, free_gib, judge, keeping, largest_that_fits, worker_counts

USAGE = "%(prog)s --deepspeed_config FILE [--data.manifest DIR] [--memory_gib G] [--ranks N] [--FIELD VALUE ...]"
OWN = ("ranks", "memory_gib", "largest", "seconds", "timeout")  # options that are not launch/pretrain.py's
SHARE = 0.9  # of the free memory of a machine without a GPU


class Tuner:
    """Starts probes and remembers them.

    Args:
        raw: The DeepSpeed JSON.
        fields: Further options of launch/pretrain.py.
        options: Of the command line.
        ranks: Of this machine.
        folder: For the probes' JSON files.
        memory_gib: Limit of a rank; 0: none.
    """

    def __init__(
        self, raw: dict[str, Any], fields: Sequence[str], options: Any, ranks: int, folder: Path, memory_gib: float
    ) -> None:
        self.raw, self.fields, self.options, self.ranks, self.folder = raw, list(fields), options, ranks, folder
        self.memory_gib = memory_gib
        self.steps: list[Trial] = []
        self.feeds: list[Trial] = []

    def fits(self, micro: int) -> bool:
        """Whether steps of that micro batch can be made."""
        program = ["--module", "simvtp_ds.bench.probe", *self._config(micro), "--memory_gib", str(self.memory_gib)]
        if self.ranks == 1:
            command = [sys.executable, "-m", *program[1:]]
        else:
            command = launch_command(Ranks(1, self.ranks), "", program)
        ended = run_command([*command, *self.fields], self.options.timeout)
        trial = judge(*ended, {"micro_batch": micro})
        self.steps.append(trial)
        print(f"micro batch {micro}: {_said(trial)}", flush=True)
        return trial.found is not None

    def feed(self, backend: str, workers: int, micro: int) -> Trial:
        """Clips a second that so many decoder processes feed."""
        command = [sys.executable, "-m", "simvtp_ds.bench.probe", *self._config(micro), *self.fields]
        command += ["--feed", str(self.options.seconds), "--data.backend", backend, "--data.workers", str(workers)]
        ended = run_command(command, self.options.timeout)
        trial = judge(*ended, {"backend": backend, "workers": workers})
        self.feeds.append(trial)
        print(f"{backend}, {workers} workers: {_said(trial)}", flush=True)
        return trial

    def _config(self, micro: int) -> list[str]:
        path = self.folder / f"micro{micro}.json"
        changed = {**self.raw, "train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": 1}
        changed.pop("train_batch_size", None)
        path.write_text(json.dumps(changed))
        return ["--deepspeed_config", str(path)]


def _said(trial: Trial) -> str:
    if trial.found is None:
        return f"does not fit ({trial.reason})"
    memory = f", {trial.found['memory_gib']:.2f} GiB a rank" if "memory_gib" in trial.found else ""
    return f"{trial.found['clips_per_s']:.1f} clips/s{memory}"


def run(arguments: list[str]) -> dict[str, Any]:
    """The report.

    Raises:
        BenchError, ValueError: An option is at fault, or a probe failed for another reason than memory.
    """
    parser = bench_parser(arguments, __doc__ or "", USAGE)
    parser.add_argument("--ranks", type=int, default=0, help="of this machine; 0: its GPUs, 1 without any")
    parser.add_argument("--memory_gib", type=float, default=0.0, help="of a rank on CPUs; 0: its part of what is free")
    parser.add_argument("--largest", type=int, default=1024, help="micro batch to stop at")
    parser.add_argument("--seconds", type=float, default=10.0, help="that clips are fed for, a trial")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds of a trial")
    config, options = parsed(parser, arguments)
    for name in ("largest", "seconds", "timeout"):
        if getattr(options, name) <= 0:
            raise BenchError(f"--{name} is {getattr(options, name)}; it must be above 0")
    for name in ("ranks", "memory_gib"):
        if getattr(options, name) < 0:
            raise BenchError(f"--{name} is {getattr(options, name)}; give a number above 0, or 0 for the default")

    from deepspeed.accelerator import get_accelerator

    from simvtp_ds.data.backend import choose_backend
    from simvtp_ds.ds_settings import check_accelerator, load_settings

    accelerator: Any = get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    ranks = options.ranks or (1 if on_cpu else accelerator.device_count())
    settings = load_settings(options.deepspeed_config, ranks)
    check_accelerator(settings)
    unit = config.data.views
    least = max(2, 2 * unit)
    memory_gib = (options.memory_gib or SHARE * free_gib() / ranks) if on_cpu else 0.0
    fields = training_fields(arguments, OWN)
    if memory_gib:
        print(f"a rank may take {memory_gib:.2f} GiB", flush=True)
    with TemporaryDirectory(prefix="simvtp-tune-") as folder:
        tuner = Tuner(settings.raw, fields, options, ranks, Path(folder), memory_gib)
        micro = largest_that_fits(tuner.fits, unit, least, options.largest)
        if not micro:
            raise BenchError(
                f"not even a micro batch of {least} fits: try compute.recompute, offload_optimizer, or a smaller model"
            )
        feed = None
        if config.data.manifest or config.data.mixture:
            backends = ["cpu", *(["dali"] if choose_backend(config.data) == "dali" else [])]
            cores = len(os.sched_getaffinity(0)) // ranks
            for backend in backends:
                for workers in worker_counts(cores):
                    tuner.feed(backend, workers, least)
            feed = fastest(tuner.feeds)
    kept = keeping(settings.global_batch(ranks), ranks, micro, unit)
    return {
        "bench": "autotune",
        "deepspeed_config": settings.path,
        "ranks": ranks,
        "global_batch": settings.global_batch(ranks),
        "memory_gib": memory_gib,
        "steps": [trial._asdict() for trial in tuner.steps],
        "feeds": [trial._asdict() for trial in tuner.feeds],
        "largest_micro_batch": micro,
        "same_global_batch": kept,
        "feed": feed.setting if feed else None,
    }


def advice(report: dict[str, Any]) -> str:
    """The lines to write down."""
    lines = [f"The largest micro batch that fits: {report['largest_micro_batch']}. In {report['deepspeed_config']}:"]
    micro, accumulation = report["same_global_batch"] or (report["largest_micro_batch"], 1)
    said = (
        f"still {report['global_batch']} clips a step"
        if report["same_global_batch"]
        else "another global batch: scale the lr"
    )
    lines.append(f'  "train_micro_batch_size_per_gpu": {micro},')
    lines.append(f'  "gradient_accumulation_steps": {accumulation},   ({said})')
    if report["feed"]:
        lines.append("In the YAML, or as options of launch/pretrain.py:")
        lines.append(f"  --data.backend {report['feed']['backend']} --data.workers {report['feed']['workers']}")
    else:
        lines.append("Who decodes fastest was not tried: give --data.manifest")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, prints what was tried, the advice and the JSON line."""
    report_or_error(lambda: run(sys.argv[1:]), advice, BenchError, ValueError, OSError)


if __name__ == "__main__":
    main()
