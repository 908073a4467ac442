"""Formats the rows as a table, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from bench.row import Row

MET = {None: "", True: "yes", False: "no"}


def table(rows: Sequence[Row]) -> Table:
    """One line per row; the note of a row follows below it in small text."""
    shown = Table("figure", "unit", "ours", "peer", "against", "ratio", "goal", "met", title_justify="left")
    for column in shown.columns[2:4]:
        column.justify = "right"
    for row in rows:
        shown.add_row(
            row.name,
            row.unit,
            number(row.ours),
            number(row.peer),
            row.against,
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.goal or "",
            MET[row.met],
        )
        if row.note:
            shown.add_row(f"  {row.note}", style="dim")
    return shown


def number(value: float | None) -> str:
    """Three or four significant digits."""
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def document(rows: Sequence[Row], machine: Mapping[str, Any], *, quick: bool) -> str:
    whole = {"machine": dict(machine), "quick": quick, "figures": [row.document() for row in rows]}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def markdown(rows: Sequence[Row]) -> str:
    """The same table for a README."""
    lines = ["| figure | unit | ours | peer | against | ratio | goal | met |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        cells = [
            row.name,
            row.unit,
            number(row.ours),
            number(row.peer),
            row.against,
            ratio,
            row.goal or "",
            MET[row.met],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
