"""`lab run` itself: a wrong expectation fails, the output names the actual result, and no lab is left behind."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from l7proxy.lab.state import root
from tests.lab.conftest import ROOT, Cluster

pytestmark = pytest.mark.lab

SCENARIO = f"""
manifests: [{ROOT}/deploy/demo]
cases:
- {{from: frontend, request: GET http://backend/api/right, expect: 200}}
- {{from: frontend, request: GET http://backend/admin/mistaken, expect: 200}}
- {{from: frontend, request: GET http://backend/api/untold, expect: 200, flows: l7-denied}}
- {{from: stranger, request: GET http://backend/api/refused, expect: timeout}}
"""


def test_each_wrong_row_is_told_and_the_exit_code_is_1(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO)
    name = f"r{os.getpid()}"
    command = Cluster.argv("run", "--name", name, str(tmp_path / "s.yaml"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    told = done.stdout.splitlines()
    lines = {word: next(line for line in told if word in line) for word in ("right", "mistaken", "untold", "refused")}
    assert "✓" in lines["right"]
    assert "expected 200" in lines["mistaken"]
    assert "0 DROPPED flows, not 1" in done.stdout
    assert "✓" not in lines["untold"]
    assert "reset" in lines["refused"]
    assert "4 rows, 3 failed" in done.stdout
    assert not (root() / name).exists()
