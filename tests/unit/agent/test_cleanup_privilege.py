"""`l7proxy cleanup` without the privilege to inspect the kernel must not report that all is clean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give up one privilege of it in a network namespace")
def test_without_privilege_it_fails(tmp_path: Path) -> None:
    weak = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--ambient-caps=-all", "unshare", "--net")
    command = (sys.executable, "-m", "l7proxy", "cleanup", "--run-dir", str(tmp_path))
    done = subprocess.run([*weak, *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done
    assert done.stderr.startswith("error: cleanup failed: nftables: nft: permission denied")
    assert done.stdout == ""
