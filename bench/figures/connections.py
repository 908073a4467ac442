"""A new connection for each request. The rate per core is requests per second of CPU of the proxy, so that it does
not depend on how fast the client's core can open connections."""

from __future__ import annotations

from bench import load
from bench.figures import Effort, OnStage, Report
from bench.figures.turns import against, take
from bench.row import Goal, Row
from bench.stage import Running, Stage, cost

NAME = "requests per second and core, a connection each"


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    def turn(running: Running) -> dict[str, float]:
        seen, spent = cost(running, lambda: load.full_rate(place, seconds=effort.seconds, close=True))
        return {
            "all": seen.requests / spent.total,
            "alone": seen.requests / spent.proxy.total,
        }

    found = take(place, effort, report, turn)
    return [
        against(f"{NAME} (worker + agent)", "1/s", found["all"], "envoy", goal=Goal(1.5, at_least=True)),
        against(f"{NAME} (worker + agent)", "1/s", found["all"], "haproxy"),
        against(f"{NAME} (worker alone)", "1/s", found["alone"], "envoy"),
    ]


FIGURE = OnStage("connections", "new connection per request, requests/s per core", measure)
