"""One table and one picture of what the benches left in a folder: python -m simvtp_ds.bench.throughput bench.

Reads step.json, data.json, train.json and scaling.json where they are, writes throughput.png and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from simvtp_ds.bench.cases import BenchError, report_or_error
from simvtp_ds.bench.readers import OURS
from simvtp_ds.files import replacing

BENCHES = ("step", "data", "train", "scaling")


class Row(NamedTuple):
    """A figure of a bench."""

    what: str
    clips_per_s: float
    note: str


def read_reports(folder: Path) -> dict[str, dict[str, Any]]:
    """The reports that are there, by bench.

    Raises:
        BenchError: There is none, or one is damaged.
    """
    found = {}
    for bench in BENCHES:
        path = folder / f"{bench}.json"
        if path.is_file() and path.stat().st_size:
            try:
                found[bench] = json.loads(path.read_text())
            except ValueError as error:
                raise BenchError(f"{path} is no report ({error}): run bench.{bench} again") from None
    if not found:
        raise BenchError(f"{folder}: no report of a bench is there; launch/throughput.sh makes them")
    return found


def rows(reports: dict[str, dict[str, Any]]) -> list[Row]:
    """What each bench found, in clips a second."""
    found: list[Row] = []
    if step := reports.get("step"):
        for name, variant in step["variants"].items():
            rate = step["clips"] / variant["seconds"]["median"]
            found.append(Row(f"bare step, {name}", rate, f"{step['clips']} clips, {step['device']}"))
    if data := reports.get("data"):
        for name, readers in data["sets"].items():
            if "all" in readers[OURS]:
                rate = readers[OURS]["all"]["clips_per_s"]
                found.append(Row(f"decoding, {name}", rate, f"{data['workers']} workers and nothing else"))
    if train := reports.get("train"):
        note = f"ZeRO-{train['zero_stage']}, {train['dtype']}, waits for data {train['shares']['data_wait']:.0%}"
        found.append(Row("training, 1 process", train["clips_per_s"], note))
    for row in reports.get("scaling", {}).get("rows", []):
        note = f"{row['micro_batch']} clips a rank, {row['efficiency']:.0%} of linear"
        ranks = "1 rank" if row["ranks"] == 1 else f"{row['ranks']} ranks, {row['kind']}"
        found.append(Row(f"training, {ranks}", row["clips_per_s"], note))
    return found


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| | clips/s | |", "|---|---|---|"]
    lines += [f"| {row['what']} | {row['clips_per_s']:.2f} | {row['note']} |" for row in report["rows"]]
    return "\n".join(lines + [f"not run: {bench}" for bench in report["not_run"]])


def plot(found: list[Row], path: Path) -> None:
    """A bar a row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 0.3 * len(found)), layout="constrained")
    axes = figure.subplots()
    kinds = [row.what.split(",")[0] for row in found]
    colours = [f"C{sorted(set(kinds)).index(kind)}" for kind in kinds]
    axes.barh(range(len(found)), [row.clips_per_s for row in found], color=colours)
    for place, row in enumerate(found):
        axes.annotate(
            f"{row.clips_per_s:.1f}", (row.clips_per_s, place), (4, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(found)), [row.what for row in found])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("clips/s")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def run(folder: Path) -> dict[str, Any]:
    """The report; draws FOLDER/throughput.png.

    Raises:
        BenchError: There is nothing to draw. OSError: FOLDER cannot be written.
    """
    reports = read_reports(folder)
    found = rows(reports)
    plot(found, folder / "throughput.png")
    missing = [bench for bench in BENCHES if bench not in reports]
    return {"bench": "throughput", "rows": [row._asdict() for row in found], "not_run": missing}


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, prints the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="--out of the benches")
    options = parser.parse_args(arguments)
    report_or_error(lambda: run(options.folder), table, BenchError, OSError)


if __name__ == "__main__":
    main()
