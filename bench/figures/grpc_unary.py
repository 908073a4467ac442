"""CPU per gRPC unary call, grpcio on both ends, eight concurrent calls on one HTTP/2 connection."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

from bench.figures import Effort, OnStage, Report
from bench.figures.turns import against, take
from bench.row import Goal, Row, not_measured
from bench.stage import GRPC, OURS, Running, Stage, cost

NAME, UNIT, GOAL = "CPU per gRPC unary call", "µs", Goal(1.0)


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    if importlib.util.find_spec("grpc") is None:
        return [not_measured(NAME, UNIT, "grpcio is not installed (pip install grpcio)", against="envoy", goal=GOAL)]
    with place.serving(GRPC, sys.executable, "-m", "bench.grpc_echo", "serve", str(GRPC)):
        with place.proxy(OURS):
            tried = _call(place, 1)
        if tried["errors"]:
            why = f"calls through our proxy fail with {tried['first_error']!r:.100}"
            return [not_measured(NAME, UNIT, why, against="envoy", goal=GOAL)]
        return _compare(place, effort, report)


def _compare(place: Stage, effort: Effort, report: Report) -> list[Row]:
    def turn(running: Running) -> dict[str, float]:
        result, spent = cost(running, lambda: _call(place, effort.seconds))
        if result["errors"]:
            raise SystemExit(f"gRPC calls through {running.name} failed: {result['first_error']}")
        return {
            "all": spent.total * 1e6 / result["calls"],
            "alone": spent.proxy.total * 1e6 / result["calls"],
            "rate": result["calls"] / result["seconds"],
        }

    found = take(place, effort, report, turn, peers=("envoy",))
    return [
        against(f"{NAME} (worker + agent)", UNIT, found["all"], "envoy", goal=GOAL),
        against(f"{NAME} (worker alone)", UNIT, found["alone"], "envoy"),
        against("gRPC unary calls per second", "1/s", found["rate"], "envoy"),
    ]


def _call(place: Stage, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.grpc_echo", "call", place.server, str(GRPC), str(seconds)]
    result: dict[str, Any] = json.loads(place.from_client(*command, seconds=seconds + 30))
    return result


FIGURE = OnStage("grpc", "gRPC unary calls: CPU per call", measure)
