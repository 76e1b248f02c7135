"""What the paper claims, repeated at small scale: a table and a plot of the runs of launch/ablation.sh.

    python -m simvtp_ds.evaluation.ablation runs/ablation

writes ablation.md, ablation.png and ablation.json there.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from simvtp_ds.files import replacing

VARIANTS = {  # of launch/ablation.sh, in the order of the plot
    "full": "four losses, tubes 90 %, words 75 %",
    "scratch": "no pre-training",
    "rebuild": "MVM + MLM only",
    "words15": "words 15 %",
    "tubes50": "tubes 50 %",
}
CLAIMS = (  # (claim, what should be better, than what)
    ("pre-training beats training from scratch", "full", "scratch"),
    ("VTC and VTM help MVM and MLM", "full", "rebuild"),
    ("hiding 75 % of the words beats 15 %", "full", "words15"),
    ("hiding 90 % of the tubes beats 50 %", "full", "tubes50"),
)


@dataclass(frozen=True)
class Result:
    """Text-to-video recalls in percent of one run."""

    zero_shot: float | None
    finetuned: float


def read_results(folder: Path) -> dict[str, dict[int, Result]]:
    """Variant -> seed -> R@1 of every finished run below `folder`.

    Raises:
        ValueError: there is none, or a variant lacks a seed that another has.
    """
    found: dict[str, dict[int, Result]] = {}
    for path in sorted(folder.glob("*/finetuned.json")):
        match = re.fullmatch(r"(\w+)-(\d+)", path.parent.name)
        if match is None or match[1] not in VARIANTS:
            continue
        zero_shot = path.with_name("zero_shot.json")
        found.setdefault(match[1], {})[int(match[2])] = Result(
            zero_shot=_recall(zero_shot) if zero_shot.is_file() else None, finetuned=_recall(path)
        )
    seeds = {variant: sorted(results) for variant, results in found.items()}
    if set(seeds) != set(VARIANTS) or len({tuple(s) for s in seeds.values()}) != 1:
        raise ValueError(
            f"{folder} is not complete: seeds by variant are {seeds}, wanted the same for {', '.join(VARIANTS)}; "
            "bash launch/ablation.sh goes on where it stopped"
        )
    return found


def _recall(path: Path) -> float:
    return json.loads(path.read_text())["t2v"]["R@1"]


def table(results: dict[str, dict[int, Result]]) -> str:
    """Two tables in Markdown: the runs, and what they say about each claim."""
    seeds = sorted(results["full"])
    lines = [
        "| pre-training | zero-shot R@1, mean | fine-tuned R@1: " + ", ".join(f"seed {s}" for s in seeds) + " | mean |",
        "|---|---|---|---|",
    ]
    for variant, words in VARIANTS.items():
        of_seed = [results[variant][seed] for seed in seeds]
        before = [result.zero_shot for result in of_seed if result.zero_shot is not None]
        lines.append(
            f"| {words} | {f'{mean(before):.1f}' if before else ''} | "
            + ", ".join(f"{result.finetuned:.1f}" for result in of_seed)
            + f" | {mean(result.finetuned for result in of_seed):.1f} |"
        )
    lines += ["", "| claim | difference in fine-tuned R@1 by seed | mean | says |", "|---|---|---|---|"]
    for claim, better, worse in CLAIMS:
        gains = differences(results, better, worse)
        lines.append(f"| {claim} | {', '.join(f'{g:+.1f}' for g in gains)} | {mean(gains):+.1f} | {verdict(gains)} |")
    return "\n".join(lines)


def differences(results: dict[str, dict[int, Result]], better: str, worse: str) -> list[float]:
    """Fine-tuned R@1 of one variant minus that of another, by seed."""
    return [results[better][seed].finetuned - results[worse][seed].finetuned for seed in sorted(results[better])]


def verdict(gains: list[float]) -> str:
    """What paired differences say: a mean within two standard errors of 0 says nothing."""
    error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("inf")
    if abs(mean(gains)) <= 2 * error:
        return "not decided"
    return "holds here" if mean(gains) > 0 else "the opposite here"


def plot(results: dict[str, dict[int, Result]], path: Path) -> None:
    """A dot a seed and a bar for the mean of each variant, zero-shot beside fine-tuned."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for part, (name, colour) in enumerate((("zero_shot", "tab:gray"), ("finetuned", "tab:blue"))):
        for place, variant in enumerate(VARIANTS):
            values = [v for r in results[variant].values() if (v := getattr(r, name)) is not None]
            if not values:
                continue
            x = place + 0.4 * (part - 0.5)
            label = {"zero_shot": "zero-shot", "finetuned": "fine-tuned"}[name] if place == 0 else None
            axes.bar(x, mean(values), width=0.38, color=colour, alpha=0.5, label=label)
            axes.plot([x] * len(values), values, "o", color=colour, markersize=4)
    axes.set_xticks(range(len(VARIANTS)), [words.replace(", ", "\n") for words in VARIANTS.values()])
    axes.set_ylabel("text-to-video R@1, %")
    axes.set_title("Drawn corpus, one dot a seed")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Read the runs, write table and plot, print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what launch/ablation.sh wrote (RUN)")
    folder = parser.parse_args().folder
    try:
        results = read_results(folder)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    text = table(results)
    plot(results, folder / "ablation.png")
    said = {claim: {"gains": (g := differences(results, a, b)), "says": verdict(g)} for claim, a, b in CLAIMS}
    for name, content in (("ablation.md", text + "\n"), ("ablation.json", json.dumps(said) + "\n")):
        with replacing(folder / name) as temporary:
            temporary.write_text(content)
    print(text)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
