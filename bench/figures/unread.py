"""Resident memory of a worker with 10 000 connections of one pod that sends many requests and reads nothing."""

from __future__ import annotations

import subprocess
import sys
import time

from bench.cpu import rss_mib
from bench.figures import Effort, OnStage, Report
from bench.row import Goal, Row, compared
from bench.stage import BULK, OURS, Stage

CONNECTIONS = 10_000
SETTLE_SECONDS = 3.0
GOAL = Goal(400, absolute=True)
"""MiB: 64 for one endpoint's bytes, 25 KiB for each accepted connection, and the worker itself."""


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    ask = [sys.executable, "-m", "bench.unread", "ask", place.server, str(BULK), str(CONNECTIONS)]
    with (
        place.serving(BULK, sys.executable, "-m", "bench.unread", "serve", str(BULK)),
        place.proxy(OURS) as running,
        place.start("client", *ask, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        before = rss_mib(running.proxy)
        assert child.stdin is not None and child.stdout is not None
        if child.stdout.readline() != b"ready\n":
            raise SystemExit("the connections were not made")
        time.sleep(SETTLE_SECONDS)
        rss, result = rss_mib(running.proxy), place.status()["workers"][0]
        child.stdin.close()
    report(f"{result['connections']} connections, {result['memory']} bytes; RSS {before:.0f}, then {rss:.0f} MiB")
    name = f"RSS of a worker with {CONNECTIONS} connections of one pod that reads nothing"
    note = f"{result['connections']} were let in, {result['refused_memory']} refused for memory"
    return [compared(name, "MiB", [rss], goal=GOAL, note=note)]


FIGURE = OnStage("unread", "RSS of a worker with 10 000 connections of one pod that reads nothing", measure)
