"""The first compile of a big cluster: from resources to the results for workers and kernel, in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import astuple

from bench import big_world
from bench.figures import Alone, Effort, Report
from bench.row import Goal, Row, compared
from bench.stage import ROOT


def measure(effort: Effort, report: Report) -> list[Row]:
    size = big_world.Size()
    command = [sys.executable, "-m", "bench.cold_compile", *map(str, astuple(size))]
    result = []
    for turn in range(1, effort.turns + 1):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr.strip() or "the compile failed")
        result.append(json.loads(done.stdout))
        report(f"turn {turn}: {done.stdout.strip()}")
    note = f"{size.pods} pods, {size.policies} policies, {result[0]['identities']} identities; the facts are in it"
    return [
        compared("cold compile", "s", [one["compile_s"] for one in result], goal=Goal(5, absolute=True)),
        compared(
            "cold compile, peak RSS",
            "MiB",
            [one["peak_mib"] for one in result],
            goal=Goal(200, absolute=True),
            note=note,
        ),
        compared("reading its manifests", "s", [one["read_s"] for one in result]),
    ]


FIGURE = Alone("cold-compile", "cold compile of 10 000 pods, 1 000 policies, 110 local endpoints", measure)
