"""Scores as a page of text."""

from __future__ import annotations

from typing import Any

from simvtp_ds.evaluation.ranks import RECALLS

NAMES = {"t2v": "text to video", "v2t": "video to text"}
COLUMNS = {
    "raw": "raw",
    "dual_softmax": "dual softmax",
    "multi_view": "multi-view",
    "rerank_top_k": "re-ranked",
}
MISSING_SHOWN = 10


def header(first: str, width: int) -> str:
    """The line above rows of `recalls`."""
    return f"{first:{width}}" + "".join(f"{f'R@{k} [95 %]':>20}" for k in RECALLS) + f"{'MdR':>7}{'MnR':>7}"


def recalls(scores: dict[str, Any]) -> str:
    """Recalls with their intervals, median and mean rank."""
    cells = []
    for k in RECALLS:
        low, high = scores["interval"][f"R@{k}"]
        cells.append(f"{scores[f'R@{k}']:6.1f} [{low:5.1f},{high:5.1f}]")
    return "".join(f"{cell:>20}" for cell in cells) + f"{scores['MdR']:7.1f}{scores['MnR']:7.1f}"


def short(scores: dict[str, Any]) -> str:
    """Recalls alone."""
    names = [f"R@{k}" for k in RECALLS]
    return ", ".join(f"{name} {scores[name]:.1f}" for name in names)


def table(found: dict[str, Any]) -> str:
    """What launch/evaluate.py prints of its scores."""
    views = found["views"]
    lines = [
        f"{found['queries']} captions, {found['videos']} videos, chance R@1 {found['chance_R@1']:.2f} %, "
        f"{views['segments']} segments x {views['crops']} crops, protocol {found['protocol']}"
    ]
    for way, name in NAMES.items():
        lines.append(header(name, 15))
        for column, title in COLUMNS.items():
            if column not in found["columns"]:
                continue
            scores = found["columns"][column]
            title += f" {scores['k']}" if "k" in scores else ""
            lines.append(f"  {title:13}{recalls(scores[way])}")
        lines.append(f"  raw, ties in our favour: {short(found[way]['optimistic'])}")
    if "dual_softmax" in found["columns"]:
        lines.append("dual softmax sees all test queries at once, which a search cannot: compare it with its like only")
    if found["protocol"] == "authors":
        lines.append(
            f"protocol authors: t2v {short(found['authors']['t2v'])}, "
            f"{found['checkpoint']} chosen among {len(found['candidates'])} by R@1 on this very set, all views, ties "
            "in our favour. This is how the paper's figure was kept; it is biased upward"
        )
    if found["missing"]:
        lines.append(f"{len(found['missing'])} videos could not be decoded and count as misses:")
        lines += [f"  {each['clip_id']}: {each['reason']}" for each in found["missing"][:MISSING_SHOWN]]
        if len(found["missing"]) > MISSING_SHOWN:
            lines.append("  ... all of them are in the JSON")
    return "\n".join(lines)
