"""10 000 HTTP rules on the port against 10: requests that use all of them, per second of CPU."""

from __future__ import annotations

from bench import load
from bench.figures import Effort, OnStage, Report
from bench.row import Goal, Row, compared
from bench.stage import OURS, Stage, cost

FEW, MANY = 10, 10_000


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    found: dict[int, list[float]] = {FEW: [], MANY: []}
    for turn in range(1, effort.turns + 1):
        for count in (FEW, MANY):
            with place.proxy(OURS, count=count) as running:
                load.full_rate(place, seconds=1, count=count)
                seen, _ = cost(running, lambda: load.full_rate(place, seconds=effort.seconds, count=count))  # noqa: B023
            found[count].append(seen.rate)
            report(f"turn {turn}, {count} rules: {seen.rate:.0f} requests a second")
    goal = Goal(0.85, at_least=True)
    return [
        compared(
            f"requests per second with {MANY} HTTP rules",
            "1/s",
            found[MANY],
            found[FEW],
            against=f"{FEW} rules",
            goal=goal,
        )
    ]


FIGURE = OnStage("many-rules", "requests/s with 10 000 HTTP rules ÷ with 10", measure)
