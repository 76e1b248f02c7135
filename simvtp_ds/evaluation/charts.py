"""Line charts as inline SVG. Colours come from the page's style sheet, so that one chart serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 12, 26  # margins around the plot
POINTS = 240  # of a line at most: each is the mean of a share of the steps
COLOURS = 8  # classes c0 ... of the page


class Line(NamedTuple):
    """A curve; y is None where there is no value, and the line is broken there."""

    name: str
    points: Sequence[tuple[float, float | None]]


def thinned(points: Sequence[tuple[float, float | None]], most: int = POINTS) -> list[tuple[float, float | None]]:
    """At most `most` points: means over runs of neighbours; a value that is missing among others is left out."""
    size = -(-len(points) // most)
    found: list[tuple[float, float | None]] = []
    for start in range(0, len(points), size or 1):
        part = points[start : start + size]
        values = [y for _, y in part if y is not None and math.isfinite(y)]
        found.append((sum(x for x, _ in part) / len(part), sum(values) / len(values) if values else None))
    return found


def line_chart(title: str, lines: Sequence[Line], colours: Sequence[int], from_zero: bool = False) -> str:
    """A figure with its caption.

    Args:
        title: What is shown.
        lines: The curves; x are steps.
        colours: Number of each line's colour.
        from_zero: Whether the y axis starts at 0.

    Returns:
        HTML; empty where no line has a value.
    """
    curves = [thinned(line.points) for line in lines]
    known = [(x, y) for curve in curves for x, y in curve if y is not None]
    if not known:
        return ""
    low, high = (0.0 if from_zero else min(y for _, y in known)), max(y for _, y in known)
    if low == high:
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    y_ticks = [float(t) for t in MaxNLocator(5).tick_values(low, high)]
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    first, last = min(x for x, _ in known), max(x for x, _ in known)
    last += last == first
    x_ticks = [float(t) for t in MaxNLocator(5, integer=True).tick_values(first, last) if first <= t <= last]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    parts = []
    for tick in y_ticks:
        _, y = place(first, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in x_ticks:
        x, _ = place(tick, low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{short(tick)}</text>')
    for line, curve, colour in zip(lines, curves, colours, strict=True):
        for missing, stretch in groupby(curve, key=lambda point: point[1] is None):
            if missing:
                continue
            places = [place(x, y) for x, y in stretch if y is not None]
            kind = f'class="c{colour % COLOURS}"'
            if len(places) == 1:
                parts.append(f'<circle {kind} cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3"/>')
            else:
                told = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
                parts.append(f'<polyline {kind} points="{told}"><title>{escape(line.name)}</title></polyline>')
    ends = [
        f"{line.name} {short(values[-1])}"
        for line, curve in zip(lines, curves, strict=True)
        if (values := [y for _, y in curve if y is not None])
    ]
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}, at the end: {escape(", ".join(ends))}">{"".join(parts)}</svg></figure>'
    )


def short(value: float) -> str:
    """A number in few characters: 12k, 0.95, 1.5e-04."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.1e}"
    return f"{value / 1000:g}k" if abs(value) >= 10000 else f"{value:.5g}"
