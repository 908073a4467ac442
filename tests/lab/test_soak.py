"""The soak for 45 seconds: all kinds of traffic while policy is edited, exactly one verdict for every request, nothing
left open, nothing grown. (`python -m bench.soak --minutes 10` is the long run.)"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.conftest import need

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("abort", "chunked", "deny", "down", "flip", "grpc", "h2", "keep", "malformed", "pipe", "slow", "up", "ws")


def test_forty_five_seconds_of_mixed_traffic_leave_nothing_unaccounted_for_and_nothing_open() -> None:
    need("nginx", "wrk", "taskset")
    command = [sys.executable, "-m", "bench.soak", "--minutes", "0.5", "--burst", "15", "--name", f"soak{os.getpid()}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    sent = {cells[1]: int(cells[3]) for line in done.stdout.splitlines() if len(cells := line.split()) == 13}
    assert {kind for kind in KINDS if sent.get(kind)} == set(KINDS), done.stdout
