"""CPU per request of writing flows to a file and counting them, on top of neither.

Flows themselves are always made: the ring of `l7proxy observe` has them. That part is in both, so the row has no goal:
the one there is, at most 25 %, counts the making of flows too.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench import load
from bench.figures import Effort, OnStage, Report
from bench.row import Row, compared
from bench.rules import rules
from bench.stage import Stage, cost

NEITHER, BOTH = "neither", "both"
METRICS = "127.0.0.1:9965"


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    found: dict[str, list[float]] = {NEITHER: [], BOTH: []}
    place.write_policy(rules(10))
    for turn in range(1, effort.turns + 1):
        for name in found if turn % 2 else reversed(found):
            with tempfile.TemporaryDirectory(dir=place.directory) as scratch:
                each = _each(place, _settings(name, Path(scratch)), Path(scratch), effort)
            report(f"turn {turn}, {name}: {each:.4g} µs")
            found[name].append(each)
    return [
        compared(
            "CPU per request with a flow log and metrics (worker + agent)",
            "µs",
            found[BOTH],
            found[NEITHER],
            against=NEITHER,
            note="flows are made in both, for `observe`",
        )
    ]


def _settings(name: str, scratch: Path) -> dict[str, Any]:
    return {"flow_log": str(scratch / "flows.json"), "metrics_address": METRICS} if name == BOTH else {}


def _each(place: Stage, settings: dict[str, Any], scratch: Path, effort: Effort) -> float:
    """µs of CPU per request, worker and agent."""
    with place.l7proxy(settings, scratch, subprocess.DEVNULL) as (running, _):
        load.full_rate(place, seconds=1)
        seen, spent = cost(running, lambda: load.full_rate(place, seconds=effort.seconds))
    return spent.total * 1e6 / seen.requests


FIGURE = OnStage("flow-cost", "CPU per request with a flow log and metrics ÷ with neither", measure)
