"""One page about a run, from the files that the run and the evaluation wrote."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from simvtp_ds.evaluation.table import NAMES, header, recalls
from simvtp_ds.types import Losses

PARTS = Losses._fields[1:]
EVALUATIONS = {  # files of launch/evaluate.py --out in the run's folder
    "zero_shot": "pre-trained, zero-shot",
    "scratch": "fine-tuned from scratch",
    "finetuned": "pre-trained and fine-tuned",
}
LAST = 10  # steps that the last losses are averaged over: single steps are noisy


def read_json(path: Path, made_by: str) -> dict[str, Any]:
    """A JSON file of a run; ValueError where it is missing or damaged, naming what writes it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {made_by} writes it") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {made_by} writes it") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none where it is missing, lines torn by a crash left out."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The steps of a run in order; a last line torn by a crash is left out.

    Raises:
        ValueError: the file is missing or has no step.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: a training run writes it")
    steps = read_lines(path)
    if not steps:
        raise ValueError(f"{path} has no step: the run ended before its first log line")
    return steps


def mean_rates(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """clips_per_s and data_wait_share: means over the logged steps after the first; empty where none was logged."""
    logged = [m for m in metrics if "clips_per_s" in m]
    logged = logged[1:] or logged  # the first step pays for starting
    return {name: mean(m[name] for m in logged) for name in ("clips_per_s", "data_wait_share") if logged}


def _finite(metrics: list[dict[str, Any]], part: str) -> list[float]:
    """A loss by step; steps that were skipped because it was not finite are left out."""
    found = [m[part] for m in metrics if m[part] is not None]
    if not found:
        raise ValueError(f"the loss {part} was never finite: the run has learnt nothing that could be reported")
    return found


def read_evaluations(run: Path) -> dict[str, Any] | None:
    """RUN/zero_shot.json, scratch.json and finetuned.json, each where `launch/evaluate.py` has written it.

    Returns:
        queries, videos, chance_R@1 and, for each, t2v and v2t: recalls in percent with their 95 % intervals. None
        where there is no evaluation.

    Raises:
        ValueError: a file is damaged, or they are not of the same set by the honest protocol: their figures would be
            compared.
    """
    found: dict[str, Any] = {}
    first: tuple[Path, dict[str, Any]] | None = None
    for name in EVALUATIONS:
        path = run / f"{name}.json"
        if not path.is_file():
            continue
        scores = read_json(path, "launch/evaluate.py")
        lacking = {"queries", "videos", "chance_R@1", "fingerprint", "protocol", "t2v", "v2t"} - scores.keys()
        if lacking:
            raise ValueError(f"{path} has no {', '.join(sorted(lacking))}: write it again with launch/evaluate.py")
        if scores["protocol"] != "honest":
            raise ValueError(
                f"{path} is of protocol {scores['protocol']}: its checkpoint was chosen on the set itself, write it "
                "again with --protocol honest"
            )
        if first is None:
            first = path, scores
            found = {key: scores[key] for key in ("queries", "videos", "chance_R@1")}
        for key in ("fingerprint", "queries", "videos"):
            if scores[key] != first[1][key]:
                raise ValueError(
                    f"{first[0]} and {path} are of different sets ({key} {first[1][key]} and {scores[key]}): evaluate "
                    "both on the same manifest"
                )
        found[name] = {way: scores[way] for way in NAMES}
    return found or None


def build_report(run: Path) -> dict[str, Any]:
    """The figures of a run.

    Returns:
        world_size, zero_stage, optimizer, dtype, steps, clips_per_s and data_wait_share (averages over the logged
        steps after the first), loss_first, loss_last (each of the four losses; last: mean of the last 10 steps) and
        retrieval, if `launch/evaluate.py` wrote zero_shot.json beside it. Recalls are in percent.

    Raises:
        ValueError: a file is missing or damaged.
    """
    environment = read_json(run / "environment.json", "launch/pretrain.py")
    metrics = read_metrics(run / "metrics.jsonl")
    if not metrics[0].keys() >= set(PARTS):
        raise ValueError(
            f"{run} is not a run of launch/pretrain.py: name the one that it started from, with the scores of "
            f"launch/evaluate.py in {', '.join(f'{name}.json' for name in EVALUATIONS)}"
        )
    report: dict[str, Any] = {
        **{name: environment[name] for name in ("world_size", "zero_stage", "optimizer", "dtype")},
        "steps": metrics[-1]["step"],
        **mean_rates(metrics),
        "loss_first": {part: mean(_finite(metrics, part)[:1]) for part in PARTS},
        "loss_last": {part: mean(_finite(metrics, part)[-LAST:]) for part in PARTS},
    }
    retrieval = read_evaluations(run)
    if retrieval is not None:
        report["retrieval"] = retrieval
    return report


def summary(report: dict[str, Any], run: Path) -> str:
    """The report as a page of text."""
    lines = [
        f"run        {run}",
        f"trained    {report['steps']} steps on {report['world_size']} ranks, ZeRO-{report['zero_stage']}, "
        f"{report['dtype']}, {report['optimizer']}",
        f"speed      {report['clips_per_s']:.1f} clips/s, {100 * report['data_wait_share']:.0f} % waiting for data",
        "",
        "loss       first    last",
    ]
    names = {"mvm": "pixels", "mlm": "words", "vtc": "contrast", "vtm": "matching"}
    for part in PARTS:
        lines.append(f"  {part} {report['loss_first'][part]:9.4f} {report['loss_last'][part]:7.4f}   {names[part]}")
    if "retrieval" in report:
        found = report["retrieval"]
        lines += [
            "",
            f"retrieval, {found['queries']} captions, {found['videos']} videos, "
            f"chance R@1 {found['chance_R@1']:.2f} %, one view, ties against us",
        ]
        for way, name in NAMES.items():
            lines.append(header(name, 28))
            lines += [f"  {title:26}{recalls(found[key][way])}" for key, title in EVALUATIONS.items() if key in found]
    return "\n".join(lines)
