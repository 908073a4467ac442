"""`l7proxy cleanup` on a node whose kube-proxy needs what the iptables backend has switched off."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from l7proxy.lab.state import root
from tests.lab.conftest import Cluster

pytestmark = pytest.mark.lab
SWITCHES = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")


@pytest.fixture
def lab() -> Iterator[Cluster]:
    cluster = Cluster(f"clean{os.getpid()}")
    cluster.run("up", "--cni", "bridge", "--backend", "iptables", "--bridge-nf-call", "1")
    try:
        yield cluster
    finally:
        cluster.run("down")


def test_services_between_pods_of_one_bridge_work_again(lab: Cluster) -> None:
    """They need bridge-nf-call, which the iptables backend sets to 0."""
    assert switches(lab) == ["0", "0"]
    assert lab.curl("frontend", "http://backend/admin") == "403"
    stop_l7proxy(lab, "node-1")
    run_dir = root() / lab.name / "nodes" / "node-1" / "run"
    command = (sys.executable, "-m", "l7proxy.cli.main", "cleanup", "--run-dir", f"{run_dir}")
    done = lab.exec("node/node-1", *command, "--state-dir", f"{run_dir}/state")
    assert done.returncode == 0, done.stderr
    assert {f"sysctl net.bridge.{name}: 1 again" for name in SWITCHES} < set(done.stdout.splitlines())
    assert switches(lab) == ["1", "1"]
    assert lab.curl("frontend", "http://backend/admin") == "200"
    assert lab.exec("node/node-1", *command, "--state-dir", f"{run_dir}/state").stdout.count("again") == 0


def switches(lab: Cluster) -> list[str]:
    return lab.exec("node/node-1", "cat", *(f"/proc/sys/net/bridge/{name}" for name in SWITCHES)).stdout.split()


def stop_l7proxy(lab: Cluster, node: str) -> None:
    """SIGTERM to the parent of agent and workers, which other tests do not share."""
    (worker, *_) = lab.agent(node)["workers"]
    status = Path(f"/proc/{worker['pid']}/status").read_text()
    supervisor = int(status.partition("PPid:")[2].split()[0])
    os.kill(supervisor, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{supervisor}").exists():
        assert time.monotonic() < deadline, "it does not stop"
        time.sleep(0.05)
