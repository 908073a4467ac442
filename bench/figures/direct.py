"""The L7 path against a port without HTTP rules, which only the kernel evaluates. In both, client and server share
the cores that the proxy does not use."""

from __future__ import annotations

from bench import load
from bench.figures import Effort, OnStage, Report
from bench.figures.turns import take
from bench.row import Goal, Row, compared
from bench.stage import DIRECT, OURS, Running, Stage

GOAL = Goal(0.40, at_least=True)


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    seconds = effort.seconds / 2

    def turn(running: Running) -> dict[str, float]:
        through = load.full_rate(place, seconds=seconds).rate
        return {"through": through, "direct": load.full_rate(place, seconds=seconds, port=DIRECT).rate}

    found = take(place, effort, report, turn, peers=("envoy", "haproxy"))
    return [
        compared(
            f"requests per second through {'the L7 path' if name == OURS else name}",
            "1/s",
            found["through"][name],
            found["direct"][name],
            against="direct",
            goal=GOAL if name == OURS else None,
        )
        for name in found["through"]
    ]


FIGURE = OnStage("direct", "requests/s through the L7 path ÷ direct", measure)
