"""CPU per request on keep-alive connections, with policy, two flows per request and counters; peers log, too."""

from __future__ import annotations

from bench import load
from bench.figures import Effort, OnStage, Report
from bench.figures.turns import against, take
from bench.row import Goal, Row
from bench.stage import Running, Stage, cost

NAME = "CPU per request, keep-alive"
UNIT = "µs"


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    def turn(running: Running) -> dict[str, float]:
        seen, spent = cost(running, lambda: load.full_rate(place, seconds=effort.seconds))
        return {
            "all": spent.total * 1e6 / seen.requests,
            "alone": spent.proxy.total * 1e6 / seen.requests,
            "user": (spent.proxy.user + spent.beside.user) * 1e6 / seen.requests,
            "rate": seen.rate,
        }

    found = take(place, effort, report, turn)
    return [
        against(f"{NAME} (worker + agent)", UNIT, found["all"], "envoy", goal=Goal(0.40)),
        against(f"{NAME} (worker + agent)", UNIT, found["all"], "haproxy", goal=Goal(1.0)),
        against(f"{NAME} (worker + agent)", UNIT, found["all"], "nginx"),
        against(f"{NAME} (worker alone)", UNIT, found["alone"], "envoy"),
        against(f"{NAME} (worker alone)", UNIT, found["alone"], "haproxy"),
        against(f"{NAME} (worker + agent), user space only", UNIT, found["user"], "envoy"),
        against("requests per second, keep-alive", "1/s", found["rate"], "envoy"),
    ]


FIGURE = OnStage("keep-alive", "CPU µs per request on keep-alive connections, varied paths and headers", measure)
