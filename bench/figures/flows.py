"""The agent's flow path: followers of Hubble's API, the newest flows at once, memory of a large ring."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from bench.figures import Alone, Effort, Report
from bench.row import Goal, Row, compared
from bench.stage import ROOT

ROUNDS = 40
ROUNDS_QUICK = 10


def measure(effort: Effort, report: Report) -> list[Row]:
    command = [sys.executable, "-m", "bench.flow_paths", str(ROUNDS_QUICK if effort.quick else ROUNDS)]
    result = []
    for turn in range(1, effort.turns + 1):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr.strip() or "the flow path failed")
        result.append(json.loads(done.stdout))
        report(f"turn {turn}: {done.stdout.strip()}")
    note = "by CPU of the agent's half, from a worker's frame to the socket; nothing lost"
    memory = Goal(150, absolute=True)
    return [
        rate("flows on one core, no follower", result, "none"),
        rate("flows on one core, one follower of all", result, "one", Goal(50_000, at_least=True, absolute=True), note),
        rate(
            "flows on one core, 20 followers of 1 % each",
            result,
            "many",
            Goal(30_000, at_least=True, absolute=True),
        ),
        compared("the newest 4095 flows", "ms", [one["last_ms"] for one in result], goal=Goal(150, absolute=True)),
        compared("RSS, 65535 L7 flows in the ring", "MiB", [one["rss_mib"] for one in result], goal=memory),
    ]


def rate(name: str, result: list[dict[str, float]], key: str, goal: Goal | None = None, note: str = "") -> Row:
    return compared(name, "flows/s", [1e6 / one[key] for one in result], goal=goal, note=note)


FIGURE = Alone("flows", "the agent's flow path: followers of Hubble's API, the newest flows, a large ring", measure)
