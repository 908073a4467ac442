"""Resident memory with 1 000 idle keep-alive connections."""

from __future__ import annotations

import subprocess
import sys
import time

from bench.cpu import rss_mib
from bench.figures import Effort, OnStage, Report
from bench.figures.turns import against, take
from bench.row import Goal, Row
from bench.stage import HTTP, Running, Stage

CONNECTIONS = 1000
SETTLE_SECONDS = 0.5


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    def turn(running: Running) -> dict[str, float]:
        command = [sys.executable, "-m", "bench.idle", place.server, str(HTTP), str(CONNECTIONS)]
        before = rss_mib(running.proxy)
        with place.start("client", *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdin is not None and child.stdout is not None
            if child.stdout.readline() != b"ready\n":
                raise SystemExit(f"{running.name} did not carry {CONNECTIONS} connections")
            time.sleep(SETTLE_SECONDS)
            rss = rss_mib(running.proxy)
            child.stdin.close()
        return {"rss": rss, "each": (rss - before) * 1024 / CONNECTIONS}

    found = take(place, effort, report, turn)
    name = f"RSS of a worker with {CONNECTIONS} idle connections"
    return [
        against(name, "MiB", found["rss"], "envoy", goal=Goal(60, absolute=True)),
        against(name, "MiB", found["rss"], "haproxy"),
        against("memory per idle connection", "KiB", found["each"], "envoy"),
    ]


FIGURE = OnStage("memory", "RSS of a worker with 1 000 idle keep-alive connections", measure)
