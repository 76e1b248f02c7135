"""What the report's page is made of: its style sheet (light and dark, wide and narrow), tables, folds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1b1d1f; --faint: #62676c; --line: #d9dcdf; --ground: #fff;
  --c0: #1f6fb4; --c1: #d1600a; --c2: #23893b; --c3: #8d4bb5;
  --c4: #b8860b; --c5: #0a8a8a; --c6: #c2335f; --c7: #5d6470; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --faint: #9aa1a8; --line: #3a3f44; --ground: #16181a;
  --c0: #6cb2f0; --c1: #f59a52; --c2: #62c97a; --c3: #c590ea;
  --c4: #e0b84b; --c5: #4fcaca; --c6: #f07a9d; --c7: #aab1bb; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2em 0 .5em; } h3 { font-size: 1rem; }
.note { color: var(--faint); font-size: .87rem; }
.wide { overflow-x: auto; margin: .6em 0; } table { border-collapse: collapse; font-size: .87rem; }
th, td { padding: .25em .9em .25em 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  font-variant-numeric: tabular-nums; }
th { color: var(--faint); font-weight: 600; }
.nowrap td, th { white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 12px 20px; }
figure { margin: 0 0 .8em; } figcaption { font-size: .87rem; color: var(--faint); overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--faint); font-size: 12px; }
svg .grid { stroke: var(--line); } polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
details { margin: .5em 0; } summary { cursor: pointer; } pre { overflow-x: auto; font-size: .82rem; }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2em 1.2em; }
.legend i { display: inline-block; width: 1.4em; height: .3em; margin-right: .5em; vertical-align: middle; }
""" + "".join(
    f"polyline.c{n} {{ stroke: var(--c{n}); }} circle.c{n} {{ fill: var(--c{n}); }} "
    f".legend .k{n} {{ background: var(--c{n}); }}\n"
    for n in range(8)
)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], style: str = "") -> str:
    """A table that scrolls by itself where it is wider than the screen; empty without rows. Cells are escaped.

    `style`: "nowrap" keeps each cell on one line.
    """
    told = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f'<div class="wide {style}"><table><tr>{heads}</tr>{told}</table></div>' if told else ""


def fold(title: str, content: str) -> str:
    """Something that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def duration(seconds: float) -> str:
    """3 s, 4.2 min, 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
