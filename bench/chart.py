"""Draws the rows that have a ratio: one bar each, on a logarithmic scale where shorter is always better.

Plain SVG with colours that are readable on white and on black. If more is better, the bar is peer ÷ ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

from bench.row import Row

WIDTH: Final = 860
LABEL: Final = 400
BAR: Final = 14
STEP: Final = 26
TOP: Final = 64
RIGHT: Final = 70
DECADE: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
GOOD, BAD, PLAIN, INK = "#2e9e5b", "#d1542f", "#7a8ba3", "#8a8f98"


def chart(rows: Sequence[Row], caption: str) -> str:
    drawn = [row for row in rows if row.ratio]
    height = TOP + STEP * len(drawn) + 34
    bottom = TOP + STEP * len(drawn)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{escape(caption)}</title>",
        f'<text x="12" y="22" font-size="15" font-weight="600" fill="{INK}">l7proxy beside others: cost relative to '
        "theirs (left is better)</text>",
        f'<text x="12" y="42" fill="{INK}">{escape(caption)}</text>',
        *(_line(tick, bottom) for tick in DECADE),
        *(_bar(row, TOP + STEP * index) for index, row in enumerate(drawn)),
        f'<text x="12" y="{height - 10}" fill="{INK}">green: goal met · red: goal missed · grey: no goal · '
        "thin mark: the goal</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def more_is_better(row: Row) -> bool:
    return row.unit == "1/s"


def cost(row: Row) -> float:
    """The ratio, inverted if more is better."""
    ratio = row.ratio or 1.0
    return 1 / ratio if more_is_better(row) else ratio


def position(ratio: float) -> float:
    """The x position of a ratio, limited to the axis."""
    low, high = math.log(DECADE[0]), math.log(DECADE[-1])
    part = (math.log(min(max(ratio, DECADE[0]), DECADE[-1])) - low) / (high - low)
    return LABEL + part * (WIDTH - LABEL - RIGHT)


def _line(tick: float, bottom: int) -> str:
    x = position(tick)
    width = 1.5 if tick == 1 else 0.5
    return (
        f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="{INK}" stroke-width="{width}"/>'
        f'<text x="{x:.1f}" y="{bottom + 12}" text-anchor="middle" fill="{INK}">{tick:g}×</text>'
    )


def _bar(row: Row, y: int) -> str:
    end = position(cost(row))
    colour = PLAIN if row.met is None else GOOD if row.met else BAD
    start = position(DECADE[0])
    label = f"{row.name} ÷ {row.against}"
    return (
        f'<text x="{LABEL - 8}" y="{y + BAR - 3}" text-anchor="end" fill="{INK}">{escape(_short(label))}</text>'
        f'<rect x="{start:.1f}" y="{y}" width="{max(1.0, end - start):.1f}" height="{BAR}" rx="2" fill="{colour}"/>'
        f'<text x="{end + 6:.1f}" y="{y + BAR - 3}" fill="{colour}" font-weight="600">{cost(row):.2f}</text>'
        f"{_goal(row, y)}"
    )


def _goal(row: Row, y: int) -> str:
    """A mark at the goal, if the goal is a ratio."""
    if not row.goal or "×" not in row.goal:
        return ""
    value = float(row.goal.split()[1])
    x = position(1 / value if more_is_better(row) else value)
    return f'<line x1="{x:.1f}" y1="{y - 3}" x2="{x:.1f}" y2="{y + BAR + 3}" stroke="{INK}" stroke-width="2"/>'


def _short(label: str, longest: int = 64) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"
