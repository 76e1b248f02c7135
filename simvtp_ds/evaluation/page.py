"""Runs as one HTML file: no script, nothing from elsewhere, readable without a network and on a phone.

Everything that a run wrote is escaped; a content security policy forbids scripts and requests besides.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from simvtp_ds.evaluation.charts import Line, line_chart
from simvtp_ds.evaluation.history import History, bad_reasons, differing
from simvtp_ds.evaluation.page_style import STYLE
from simvtp_ds.evaluation.report import EVALUATIONS, LAST, PARTS
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
TRAINING_PICTURES, OTHER_PICTURES = 3, 8  # embedded of each run
ROWS = 20  # of a table that may be long


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


def table(head: Sequence[str], rows: Iterable[Sequence[object]], style: str = "") -> str:
    """A table that scrolls by itself where it is wider than the screen; empty without rows. Cells are escaped.

    `style`: "nowrap" keeps each cell on one line.
    """
    told = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f'<div class="wide {style}"><table><tr>{heads}</tr>{told}</table></div>' if told else ""


def overview(histories: Sequence[History], names: dict[int, str]) -> str:
    """A row a run: what it is, how fast, how far."""
    rows = []
    for history in histories:
        about, metrics = history.environment, history.metrics
        rates = [m for m in metrics if "clips_per_s" in m]
        rates = rates[1:] or rates  # the first step pays for starting
        last = [_last(metrics, part) for part in PARTS]
        rows.append(
            [
                names[id(history)],
                history.kind,
                metrics[-1]["step"],
                f"{about.get('world_size')} x {about.get('dtype')}, ZeRO-{about.get('zero_stage')}",
                f"{sum(m['clips_per_s'] for m in rates) / len(rates):.1f}" if rates else "",
                f"{100 * sum(m['data_wait_share'] for m in rates) / len(rates):.0f} %" if rates else "",
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


def retrieval(history: History, name: str) -> str:
    """The tables that launch/report.py prints."""
    found = history.retrieval
    if found is None:
        return ""
    parts = [
        f"<h2>Retrieval: {escape(name)}</h2><p>{found['queries']} captions, {found['videos']} videos, chance R@1 "
        f"{found['chance_R@1']:.2f} %; one view, ties against us, 95 % intervals in brackets.</p>"
    ]
    for way, title in NAMES.items():
        rows = []
        for key, shown in EVALUATIONS.items():
            if key in found:
                scores = found[key][way]
                recalls = [
                    f"{scores[f'R@{k}']:.1f} [{scores['interval'][f'R@{k}'][0]:.1f}, "
                    f"{scores['interval'][f'R@{k}'][1]:.1f}]"
                    for k in (1, 5, 10)
                ]
                rows.append([shown, *recalls, f"{scores['MdR']:.1f}", f"{scores['MnR']:.1f}"])
        parts.append(table([title, "R@1", "R@5", "R@10", "MdR", "MnR"], rows, "nowrap"))
    return "".join(parts)


def details(history: History, name: str) -> str:
    """What ran, what went wrong, what it looks like."""
    parts = [f"<h2>Details: {escape(name)}</h2>", pictures(history), restarts(history), bad_clips(history)]
    about = [[key, value] for key, value in history.environment.items() if not isinstance(value, dict)]
    about += [[key, value] for key, value in history.environment.get("packages", {}).items()]
    parts.append(fold("What ran: versions, hosts, commit", table(["", ""], [[k, _plain(v)] for k, v in about])))
    parts.append(fold("Configuration", f"<pre>{escape(history.config)}</pre>" if history.config else ""))
    deepspeed = {k.removeprefix("deepspeed."): v for k, v in history.settings.items() if k.startswith("deepspeed.")}
    parts.append(fold("DeepSpeed JSON", table(["key", "value"], [[k, _plain(v)] for k, v in deepspeed.items()])))
    return "".join(parts)


def _plain(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def fold(title: str, content: str) -> str:
    """Something that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def pictures(history: History) -> str:
    """Reconstructions: first, middle and last of the training, and those of launch/visualize.py."""
    taken = [path for path in history.pictures if path.name.startswith("step_")]
    others = [path for path in history.pictures if path not in taken]
    middle = [taken[0], taken[len(taken) // 2], taken[-1]] if len(taken) > TRAINING_PICTURES else taken
    shown = [*others[:OTHER_PICTURES], *dict.fromkeys(middle)]
    if not shown:
        return ""
    parts = ["<h3>Reconstructions</h3>", word_table(history.words)]
    for path in shown:
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f'<figure><figcaption>{escape(path.name)}</figcaption><img alt="original, masked and rebuilt frames" '
            f'src="data:image/png;base64,{data}"></figure>'
        )
    if left := len(history.pictures) - len(shown):
        parts.append(f"<p class=note>{left} more in {escape(str(history.folder / 'pictures'))}.</p>")
    return "".join(parts)


def word_table(found: dict[str, Any] | None) -> str:
    """Hidden words told with and without the video."""
    if not found or not found.get("words"):
        return ""
    rows = [[name, f"{100 * s['right']:.1f} %", f"{s['perplexity']:.2f}"] for name, s in found["words"].items()]
    head = [f"{found['hidden_words']} hidden words of {found['clips']} clips", "right", "perplexity"]
    return table(head, rows)


def restarts(history: History) -> str:
    """When the run was started again, and what that cost."""
    parts = []
    if history.restarts:
        rows = [[r.at, r.step, r.reached, r.why or "ended without a word", duration(r.lost)] for r in history.restarts]
        head = ["started again", "from step", "had reached", "the start before", "lost"]
        parts.append(f"<h3>Restarts: {duration(history.lost)} lost</h3>{table(head, rows[-ROWS:])}")
        parts.append(
            "<p class=note>Lost: from the last logged step until that step was logged again. Times are those of the "
            "main rank's host.</p>"
        )
    if history.supervised:
        keys = list(dict.fromkeys(key for line in history.supervised for key in line))
        rows = [[_plain(line.get(key, "")) for key in keys] for line in history.supervised]
        parts.append(f"<h3>Supervisor</h3>{table(keys, rows[-ROWS:])}")
    return "".join(parts)


def bad_clips(history: History) -> str:
    """What could not be decoded, the most frequent first."""
    reasons = bad_reasons(history)
    if not reasons:
        return ""
    more = f"<p class=note>{len(reasons) - ROWS} more in bad_clips.</p>" if len(reasons) > ROWS else ""
    rows = [[reason, count] for reason, count in reasons[:ROWS]]
    return f"<h3>Bad clips: {len(history.bad)} replaced</h3>{table(['file and reason', 'times'], rows)}{more}"


def duration(seconds: float) -> str:
    """3 s, 4.2 min, 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
