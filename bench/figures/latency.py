"""Latency at half of Envoy's maximum rate, the same for all proxies, open loop: waiting time is included."""

from __future__ import annotations

from bench import load
from bench.figures import Effort, OnStage, Report
from bench.figures.turns import against, take
from bench.row import Goal, Row, not_measured
from bench.stage import DIRECT, Running, Stage

GOAL = Goal(0.6)


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    if "envoy" not in [peer.name for peer in place.peers()]:
        return [not_measured(f"latency, {part}", "µs", "Envoy sets the rate", goal=GOAL) for part in ("p50", "p99")]
    with place.proxy("envoy"):
        rate = load.full_rate(place, seconds=effort.seconds).rate / 2
    direct = load.fixed_rate(place, rate=rate, seconds=effort.seconds, port=DIRECT)
    report(f"{rate:.0f} requests a second; without a proxy p50 {direct.p50_us:.0f} µs, p99 {direct.p99_us:.0f} µs")

    def turn(running: Running) -> dict[str, float]:
        seen = load.fixed_rate(place, rate=rate, seconds=effort.seconds)
        return {"p50": seen.p50_us, "p99": seen.p99_us}

    found = take(place, effort, report, turn, peers=("envoy", "haproxy"))
    note = f"at {rate:.0f}/s; without a proxy p50 {direct.p50_us:.0f}, p99 {direct.p99_us:.0f}"
    return [
        against(f"latency {part} at half of Envoy's rate", "µs", found[part], peer, goal=goal, note=note)
        for part in ("p50", "p99")
        for peer, goal in (("envoy", GOAL), ("haproxy", None))
    ]


FIGURE = OnStage("latency", "p50 and p99 at half of Envoy's top rate, open loop", measure)
