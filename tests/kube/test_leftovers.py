"""Whatever ends the tool, `down` leaves nothing but the cache: no process, namespace, cgroup, mount or file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cluster import cgroups
from deploy.cluster import cluster as clusters
from deploy.cluster.plan import MAX_NODES, Cluster
from l7proxy.lab import netns
from tests.kube.handle import ROOT, name_of_this_checkout

NAME = name_of_this_checkout("left")
MACHINES = Cluster(NAME, node_count=MAX_NODES).machines


@pytest.fixture(autouse=True)
def clean(own_names: None) -> Iterator[None]:
    clusters.down(NAME)
    yield
    clusters.down(NAME)


def interrupted(sent: signal.Signals, after: str) -> int:
    """Bring a cluster up, and end the tool when it has said `after`. Its exit code."""
    command = [sys.executable, "-m", "deploy.cluster", "--name", NAME, "up"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tool:
        assert tool.stderr
        said = next((line for line in tool.stderr if after in line), "")
        assert said, f"the tool has ended without saying {after!r}"
        tool.send_signal(sent)
        tool.stderr.read()
        return tool.wait()


def left() -> list[str]:
    """What there is of the cluster on this machine."""
    found = [str(path) for path in cgroups.left(machine.cgroup for machine in MACHINES)]
    found += [machine.netns for machine in MACHINES if netns.path_of(machine.netns).exists()]
    data = Cluster(NAME).data
    found += [str(data)] if data.exists() else []
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(data) in line]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                arguments = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            found += [arguments.decode()] if os.fsencode(data) in arguments else []
    return found


@pytest.mark.parametrize(
    ("sent", "after"),
    [
        (signal.SIGKILL, "certificates"),
        (signal.SIGKILL, "machines and the network"),
        (signal.SIGKILL, "control plane"),
        (signal.SIGKILL, "nodes are Ready"),
        (signal.SIGINT, "machines and the network"),
        (signal.SIGTERM, "control plane"),
    ],
)
def test_down_removes_what_an_interrupted_up_has_left(sent: signal.Signals, after: str) -> None:
    code = interrupted(sent, after)
    assert code == (130 if sent == signal.SIGINT else -sent)
    assert left()
    assert clusters.down(NAME)
    assert left() == []
    assert not clusters.down(NAME)


def test_up_begins_anew_after_an_interrupted_one() -> None:
    interrupted(signal.SIGKILL, "control plane")
    assert clusters.up(Cluster(NAME, node_count=1))
    assert clusters.down(NAME)
    assert left() == []
