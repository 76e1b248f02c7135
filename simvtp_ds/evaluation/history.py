"""All that a run's folder tells of its life: settings, steps, restarts, bad clips, scores and pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from simvtp_ds.evaluation.report import EVALUATIONS, PARTS, read_evaluations, read_json, read_lines, read_metrics

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)")
_START = re.compile(r"\w+ [\d.]+ M parameters, .* steps (\d+) to \d+ \(")
_STEP = re.compile(r"step (\d+)/\d+ total ")
_LAST_WORD = re.compile(r"(stopped by .*|ended: .*|finished at step .*)")


class Restart(NamedTuple):
    """A start that was not the first."""

    at: str  # local time of the training host
    step: int  # it went on from
    reached: int  # last step logged before
    why: str  # last word of the start before; empty: it ended without one, as a killed process does
    lost: float  # seconds without progress: from the last step logged before, until that step was reached again


@dataclass(frozen=True)
class History:
    """A run, as its files have it."""

    folder: Path
    kind: str  # "pre-training" or "fine-tuning"
    environment: dict[str, Any]  # versions, hosts, commit, sizes
    config: str  # YAML; empty where there is none
    settings: dict[str, Any]  # `config` and the DeepSpeed JSON with dotted names
    metrics: list[dict[str, Any]]  # a step each
    validation: list[dict[str, Any]]
    restarts: list[Restart]
    supervised: list[dict[str, Any]]  # what launch/supervise.py noted
    bad: list[dict[str, Any]]  # clips that were replaced
    retrieval: dict[str, Any] | None  # see `read_evaluations`
    words: dict[str, Any] | None  # averages of launch/visualize.py, see `sum_up`
    pictures: list[Path]

    @property
    def lost(self) -> float:
        """Seconds lost to restarts."""
        return sum(restart.lost for restart in self.restarts)


def read_history(run: Path) -> History:
    """What the folder of a run holds; what a run need not have may be missing.

    Raises:
        ValueError: it is no run, has no step yet, or a file of it is damaged.
    """
    environment = read_json(run / "environment.json", "launch/pretrain.py")
    metrics = read_metrics(run / "metrics.jsonl")
    config, deepspeed = run / "config.yaml", run / "deepspeed.json"
    text = config.read_text() if config.is_file() else ""
    try:
        settings = flat(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise ValueError(f"{config} is damaged ({error}): the run writes it at every start") from error
    if deepspeed.is_file():
        settings |= flat(read_json(deepspeed, "a training run"), "deepspeed.")
    predictions = run / "pictures" / "predictions.json"
    log = run / "log.txt"
    return History(
        folder=run,
        kind="pre-training" if metrics[0].keys() >= set(PARTS) else "fine-tuning",
        environment=environment,
        config=text,
        settings=settings,
        metrics=metrics,
        validation=read_lines(run / "validation.jsonl"),
        restarts=find_restarts(log.read_text(errors="replace")) if log.is_file() else [],
        supervised=read_lines(run / "supervise.jsonl"),
        bad=[line for path in sorted((run / "bad_clips").glob("rank_*.jsonl")) for line in read_lines(path)],
        retrieval=read_evaluations(run),
        words=read_json(predictions, "launch/visualize.py") if predictions.is_file() else None,
        pictures=sorted((run / "pictures").glob("*.png")),
    )


def runs_within(run: Path) -> list[Path]:
    """The run and those that lie in its folder under the names of evaluations, such as RUN/finetuned."""
    return [run, *(run / name for name in EVALUATIONS if (run / name / "metrics.jsonl").is_file())]


def find_restarts(log: str) -> list[Restart]:
    """The restarts that a run's log.txt tells of. Seconds count what was logged: a step a log line, not each."""
    found: list[Restart] = []
    furthest, word, idle_since, catching_up = 0, "", None, False
    for time, text in _told(log):
        if start := _START.match(text):
            if idle_since is not None:
                waited = 0.0 if word.startswith("finished") else (time - idle_since).total_seconds()
                found.append(Restart(str(time), int(start[1]), furthest, word, waited))
                catching_up = True
            idle_since, word = time, ""
        elif step := _STEP.match(text):
            if catching_up and idle_since is not None:
                found[-1] = found[-1]._replace(lost=found[-1].lost + (time - idle_since).total_seconds())
                catching_up = int(step[1]) < furthest
            idle_since, furthest = time, max(furthest, int(step[1]))
        elif last := _LAST_WORD.match(text):
            word = last[1]
    return found


def _told(log: str) -> Iterator[tuple[datetime, str]]:
    for line in log.splitlines():
        if parts := _LINE.fullmatch(line):
            yield datetime.fromisoformat(parts[1]), parts[2]


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def differing(histories: list[History]) -> dict[str, list[Any]]:
    """Settings in which runs differ, one value a run (None: not set), without the folders that always do."""
    names = dict.fromkeys(name for history in histories for name in history.settings)
    values = {name: [history.settings.get(name) for history in histories] for name in names if name != "run.dir"}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def bad_reasons(history: History) -> list[tuple[str, int]]:
    """Clips that were replaced ("file: reason") and how often, the most frequent first."""
    return Counter(str(line.get("reason") or line.get("uri")) for line in history.bad).most_common()
