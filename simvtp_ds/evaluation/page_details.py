"""The parts of the report's page that are about one run: retrieval, pictures, restarts, bad clips, settings."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from simvtp_ds.evaluation.history import History, bad_reasons
from simvtp_ds.evaluation.page_parts import duration, fold, table
from simvtp_ds.evaluation.report import EVALUATIONS
from simvtp_ds.evaluation.table import NAMES

TRAINING_PICTURES, OTHER_PICTURES = 3, 8  # embedded of each run
ROWS = 20  # of a table that may be long


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
