"""Finding 15: a running lab can be taken down completely, without EBUSY, after another process ran `ip netns add`.

Runs in its own mount namespace: the machine's /run/netns may hold other labs.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.lab.conftest import ROOT

SCRIPT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
[ "$3" = private ] || mount --make-shared /run
lab() { "$1" -m l7proxy.cli.main lab "$2" --name "$3" "${@:4}" >/dev/null; }
lab "$1" up "$2" --no-agent
ip netns add others
lab "$1" up "$2b" --no-agent
ip netns add again
lab "$1" down "$2"
lab "$1" down "$2b"
ls /run/netns
ip netns exec others true
ip netns del others
ip netns del again
grep "l7lab_$2" /proc/self/mountinfo || true
"""


@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts: needs root")
@pytest.mark.parametrize("propagation", ["private", "shared"])
def test_down_leaves_nothing_after_ip_netns_has_covered_the_directory(propagation: str) -> None:
    name = f"c{os.getpid()}"
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", SCRIPT, "test", sys.executable, name, propagation],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["again", "others"]
