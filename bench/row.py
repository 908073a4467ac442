"""One row of the table: our value, the peer's, their ratio, and whether the goal is met. Pure arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Goal:
    """At least or at most `value`: of the ratio ours ÷ peer, or (`absolute`) of our value."""

    value: float
    at_least: bool = False
    absolute: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.value:g}{'' if self.absolute else ' ×'}"

    def met(self, ours: float | None, ratio: float | None) -> bool | None:
        """None when there is nothing to compare."""
        figure = ours if self.absolute else ratio
        if figure is None:
            return None
        return figure >= self.value if self.at_least else figure <= self.value


@dataclass(frozen=True, slots=True)
class Row:
    """`ours` None: not measured, and `note` gives the reason. `peer` is the value of `against`."""

    name: str
    unit: str
    ours: float | None = None
    peer: float | None = None
    against: str = ""
    ratio: float | None = None
    goal: str | None = None
    met: bool | None = None
    note: str = ""

    def document(self) -> dict[str, Any]:
        return {key: _rounded(value) for key, value in asdict(self).items()}


def compared(
    name: str,
    unit: str,
    ours: Sequence[float],
    peer: Sequence[float] = (),
    *,
    against: str = "",
    goal: Goal | None = None,
    note: str = "",
) -> Row:
    """Medians of the turns. The ratio is the median of the turns' ratios, so that one noisy turn does not decide it."""
    mine = statistics.median(ours)
    theirs = statistics.median(peer) if peer else None
    ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True)) if peer else None
    return Row(
        name,
        unit,
        mine,
        theirs,
        against,
        ratio,
        str(goal) if goal else None,
        goal.met(mine, ratio) if goal else None,
        note,
    )


def not_measured(name: str, unit: str, why: str, *, against: str = "", goal: Goal | None = None) -> Row:
    """A figure that cannot be measured here: it is listed, and counts neither as met nor as missed."""
    return Row(name, unit, against=against, goal=str(goal) if goal else None, note=f"not measured: {why}")


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(part * 1000) // 1000) - 1)]


def _rounded(value: Any) -> Any:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
