"""Runs as one HTML file: no script, nothing from elsewhere, readable without a network and on a phone.

Everything that a run wrote is escaped; a content security policy forbids scripts and requests besides.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from simvtp_ds.evaluation.charts import Line, line_chart
from simvtp_ds.evaluation.history import History, differing
from simvtp_ds.evaluation.page_details import details, retrieval
from simvtp_ds.evaluation.page_parts import STYLE, duration, table
from simvtp_ds.evaluation.report import LAST, PARTS, mean_rates
from simvtp_ds.evaluation.table import NAMES

CHARTS = {  # metric: title, factor, whether the axis starts at 0
    "mvm": ("mvm: pixels", 1, False),
    "mlm": ("mlm: words", 1, False),
    "vtc": ("vtc: contrast", 1, False),
    "vtm": ("vtm: matching", 1, False),
    "lr": ("learning rate", 1, True),
    "loss_scale": ("loss scale", 1, True),
    "grad_norm": ("gradient norm", 1, True),
    "clips_per_s": ("clips a second", 1, True),
    "data_wait_share": ("waiting for data, %", 100, True),
}


def render(histories: Sequence[History]) -> str:
    """The page of one run or several."""
    names = dict(zip(map(id, histories), unique_names([h.folder for h in histories]), strict=True))
    title = ", ".join(names.values())
    body = [f"<h1>{escape(title)}</h1>", overview(histories, names)]
    for kind in dict.fromkeys(history.kind for history in histories):
        group = [history for history in histories if history.kind == kind]
        body.append(f"<h2>{kind.capitalize()}</h2>{legend(group, histories, names)}{charts(group, histories, names)}")
        if len(group) > 1:
            body.append(differences(group, names))
    body += [retrieval(history, names[id(history)]) for history in histories]
    body += [details(history, names[id(history)]) for history in histories]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The folders without what all of them start with."""
    paths = [str(folder.resolve()) for folder in folders]
    common = os.path.commonpath([str(Path(path).parent) for path in paths])
    return [os.path.relpath(path, common) for path in paths]


def overview(histories: Sequence[History], names: dict[int, str]) -> str:
    """A row a run: what it is, how fast, how far."""
    rows = []
    for history in histories:
        about, metrics = history.environment, history.metrics
        rates = mean_rates(metrics)
        last = [_last(metrics, part) for part in PARTS]
        rows.append(
            [
                names[id(history)],
                history.kind,
                metrics[-1]["step"],
                f"{about.get('world_size')} x {about.get('dtype')}, ZeRO-{about.get('zero_stage')}",
                f"{rates['clips_per_s']:.1f}" if rates else "",
                f"{100 * rates['data_wait_share']:.0f} %" if rates else "",
                *("" if value is None else f"{value:.3f}" for value in last),
                f"{len(history.restarts)}" + (f" ({duration(history.lost)} lost)" if history.lost else ""),
                len(history.bad),
            ]
        )
    head = ["run", "kind", "steps", "ranks", "clips/s", "waiting", *PARTS, "restarts", "bad clips"]
    note = f"<p class=note>Losses: mean of the last {LAST} steps.</p>"
    return table(head, rows, "nowrap") + note


def _last(metrics: list[dict[str, Any]], part: str) -> float | None:
    values = [m[part] for m in metrics if m.get(part) is not None][-LAST:]
    return sum(values) / len(values) if values else None


def legend(group: Sequence[History], histories: Sequence[History], names: dict[int, str]) -> str:
    """Which colour is which run; nothing where there is one."""
    if len(histories) == 1:
        return ""
    keys = [f'<li><i class="k{_colour(h, histories)}"></i>{escape(names[id(h)])}</li>' for h in group]
    return f"<ul class=legend>{''.join(keys)}</ul>"


def _colour(history: History, histories: Sequence[History]) -> int:
    return next(number for number, each in enumerate(histories) if each is history)


def charts(group: Sequence[History], histories: Sequence[History], names: dict[int, str]) -> str:
    """What was measured over the steps, the runs of a kind in one chart."""
    colours = [_colour(history, histories) for history in group]
    found = []
    for metric, (title, factor, from_zero) in CHARTS.items():
        lines = [
            Line(
                names[id(h)],
                [(m["step"], None if m[metric] is None else factor * m[metric]) for m in h.metrics if metric in m],
            )
            for h in group
        ]
        values = {y for line in lines for _, y in line.points}
        if metric in ("loss_scale", "vtm") and len(values - {None}) == 1:
            continue  # not used
        found.append(line_chart(title, lines, colours, from_zero))
    for way, name in NAMES.items():
        lines = [Line(names[id(h)], [(v["step"], v[way]["R@1"]) for v in h.validation if way in v]) for h in group]
        found.append(line_chart(f"validation, {name}: R@1, %", lines, colours, from_zero=True))
    return f"<div class=charts>{''.join(found)}</div>"


def differences(group: Sequence[History], names: dict[int, str]) -> str:
    """The settings that are not the same in all runs of a kind."""
    rows = [[name, *values] for name, values in differing(list(group)).items()]
    same = "<p>The runs have the same settings.</p>"
    told = table(["setting", *(names[id(h)] for h in group)], rows) or same
    return f"<h3>What differs</h3>{told}"
