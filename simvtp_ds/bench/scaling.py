"""Training on 1, 2, 4 ... ranks through DeepSpeed's launcher: what each rank more is worth.

    python -m simvtp_ds.bench.scaling --deepspeed_config ds_configs/zero2_bf16.json --data.manifest data/mine
    python -m simvtp_ds.bench.scaling --hostfile hostfiles/8node --deepspeed_config ds_configs/zero2.json ...

Weak: every rank has the micro batch of the JSON, so a step grows with the ranks. Strong: a step has the clips that one
rank has in the JSON, shared by all. Real runs of launch/pretrain.py, data included; rounds take turns. Without
--data.manifest it renders videos of its own. Every field of pre-training is an option. Prints a table, writes
scaling.json and scaling.png into DIR, ends in one JSON line.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from simvtp_ds.bench.cases import BenchError, report_or_error
from simvtp_ds.bench.inputs import VOCABULARY
from simvtp_ds.bench.launched import Ranks, train_steps
from simvtp_ds.bench.options import WORDS, bench_parser, parsed, read_hostfile, training_fields
from simvtp_ds.bench.rendered import rendered_corpus
from simvtp_ds.data.manifest import ManifestError
from simvtp_ds.files import replacing
from simvtp_ds.progress import progress

USAGE = "%(prog)s --deepspeed_config FILE [--hostfile FILE | --ranks N] [--preset NAME] [--FIELD VALUE ...]"
FRAMES = 90  # of a rendered video
WARMUP = 3  # steps of a run that do not count
OWN = ("hostfile", "ranks", "steps", "rounds", "timeout", "out")  # options that are not launch/pretrain.py's
LEAST = 2  # clips of a micro batch: matching needs another one


def rank_counts(hosts: Sequence[int]) -> list[Ranks]:
    """1, 2, 4 ... ranks and all of the first host, then 2, 4 ... hosts and all of them, each with all its ranks."""
    per_node = hosts[0]
    found = [Ranks(1, count) for count in _doubled(per_node)]
    return found + [Ranks(nodes, per_node) for nodes in _doubled(len(hosts))[1:]]


def _doubled(last: int) -> list[int]:
    powers = [2**n for n in range(last.bit_length()) if 2**n < last]
    return [*powers, last]


def shared(micro_batch: int, ranks: int) -> int | None:
    """Of strong scaling: a rank's clips of a step, None where they do not come out even or are fewer than two."""
    share = micro_batch // ranks
    return share if share * ranks == micro_batch and share >= LEAST else None


def measure(
    counts: Sequence[Ranks], hostfile: str, raw: dict[str, Any], fields: Sequence[str], options: Any, folder: Path
) -> list[dict[str, Any]]:
    """A row a number of ranks and kind; in every round each row once, and another one is first."""
    micro = raw["train_micro_batch_size_per_gpu"]
    rows = [{"kind": "weak", "ranks": ranks, "micro": micro} for ranks in counts]
    rows += [{"kind": "strong", "ranks": ranks, "micro": shared(micro, ranks.total)} for ranks in counts[1:]]
    rows = [row for row in rows if row["micro"]]
    samples: list[list[dict[str, Any]]] = [[] for _ in rows]
    with progress("training", "runs") as told:
        for number in range(options.rounds):
            for turn in range(len(rows)):
                place = (turn + number) % len(rows)
                told(number * len(rows) + turn, options.rounds * len(rows))
                row, run = rows[place], folder / f"run{number}_{place}"
                deepspeed = {**raw, "train_micro_batch_size_per_gpu": row["micro"]}
                steps = WARMUP + options.steps
                found = train_steps(row["ranks"], hostfile, deepspeed, fields, steps, run, options.timeout)
                samples[place] += found[WARMUP:]
                shutil.rmtree(run)
        told(options.rounds * len(rows), options.rounds * len(rows))
    return [_summed(row, found) for row, found in zip(rows, samples, strict=True)]


def _summed(row: dict[str, Any], steps: list[dict[str, Any]]) -> dict[str, Any]:
    rates = [step["clips_per_s"] for step in steps]
    return {
        "kind": row["kind"],
        "ranks": row["ranks"].total,
        "nodes": row["ranks"].nodes,
        "micro_batch": row["micro"],
        "clips_per_s": median(rates),
        "spread": (max(rates) - min(rates)) / median(rates),
        "data_wait_share": median(step["data_wait_share"] for step in steps),
        "memory_gib": median(step["memory_gib"] for step in steps),
        "steps": len(steps),
    }


def with_efficiency(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds each row's clips a second over those of as many single ranks."""
    alone = next(row["clips_per_s"] for row in rows if row["ranks"] == 1)
    return [{**row, "efficiency": row["clips_per_s"] / (alone * row["ranks"])} for row in rows]


def table(report: dict[str, Any]) -> str:
    """Markdown, a row a run."""
    lines = [
        "| scaling | ranks | clips a rank | clips/s (spread) | of linear | waits for data |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['kind']} | {row['ranks']} | {row['micro_batch']} | {row['clips_per_s']:.2f} ({row['spread']:.0%}) "
            f"| {row['efficiency']:.0%} | {row['data_wait_share']:.0%} |"
        )
    most = max(row["ranks"] for row in report["rows"])
    if most <= 2:
        lines += ["", f"{most} ranks at most on this machine: that says little about more of them."]
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Clips a second over ranks, weak and strong, beside the straight line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    alone = report["rows"][0]
    most = max(row["ranks"] for row in report["rows"])
    axes.plot([1, most], [alone["clips_per_s"], alone["clips_per_s"] * most], "--", color="grey", label="linear")
    for kind in ("weak", "strong"):
        rows = [alone, *(row for row in report["rows"] if row["kind"] == kind and row["ranks"] > 1)]
        axes.plot([row["ranks"] for row in rows], [row["clips_per_s"] for row in rows], "o-", label=kind)
    axes.set_xticks(sorted({row["ranks"] for row in report["rows"]}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("ranks")
    axes.set_ylabel("clips/s")
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def run(arguments: list[str]) -> dict[str, Any]:
    """The report, also written to OUT/scaling.json and OUT/scaling.png.

    Raises:
        BenchError, ValueError, OSError: An option or a run is at fault, or OUT cannot be written.
    """
    parser = bench_parser(arguments, __doc__ or "", USAGE)
    parser.add_argument("--hostfile", default="", help="machines; empty: this one")
    parser.add_argument("--ranks", type=int, default=0, help="of this machine; 0: its accelerators")
    parser.add_argument("--steps", type=int, default=10, help=f"of a run that count, after {WARMUP}")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each row")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds of a run")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder, shared by all hosts")
    config, options = parsed(parser, arguments)
    for name in ("steps", "rounds", "timeout"):
        if getattr(options, name) <= 0:
            raise BenchError(f"--{name} is {getattr(options, name)}; give at least 1")

    import torch
    from deepspeed.accelerator import get_accelerator

    from simvtp_ds.bench.timing import place
    from simvtp_ds.ds_settings import check_accelerator, load_settings

    accelerator: Any = get_accelerator()
    alone = [options.ranks or max(1, accelerator.device_count())]
    hosts = list(read_hostfile(options.hostfile).values()) if options.hostfile else alone
    if len(set(hosts)) > 1:
        raise BenchError(f"--hostfile {options.hostfile}: its hosts have different slots ({hosts}); give them the same")
    if options.ranks < 0 or (options.ranks and options.hostfile):
        raise BenchError(f"--ranks is {options.ranks}; give a number for this machine, or a hostfile in its place")
    settings = load_settings(options.deepspeed_config, 1)
    check_accelerator(settings)
    counts = rank_counts(hosts)
    options.out.mkdir(parents=True, exist_ok=True)
    with replacing(options.out / "scaling.json") as temporary, ExitStack() as stack:
        temporary.touch()  # what cannot be written is found now, not in minutes
        # Beside the report, because all hosts must see it.
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="scaling-", dir=options.out)))
        fields = training_fields(arguments, OWN)
        if not (config.data.manifest or config.data.mixture):
            clips, words = settings.global_batch(counts[-1].total), min(WORDS, config.data.max_words)
            corpus = folder / "corpus"
            corpus.mkdir()
            with progress("rendering", "videos") as told:
                manifest = rendered_corpus(corpus, clips, FRAMES, words, VOCABULARY, told)
            fields += ["--data.manifest", str(manifest.resolve())]
        rows = measure(counts, options.hostfile, settings.raw, fields, options, folder)
        device = torch.device(accelerator.device_name())
        report = {"bench": "scaling", **place(device), "hostfile": options.hostfile}
        report |= {"deepspeed_config": options.deepspeed_config, "preset": options.preset, "warmup": WARMUP}
        report |= {"rounds": options.rounds, "rows": with_efficiency(rows)}
        temporary.write_text(json.dumps(report) + "\n")
    plot(report, options.out / "scaling.png")
    return report


def main() -> None:
    """Reads the command line, prints the table and the JSON line."""
    report_or_error(lambda: run(sys.argv[1:]), table, BenchError, ManifestError, ValueError, OSError)


if __name__ == "__main__":
    main()
