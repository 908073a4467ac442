"""Labs start and stop: side by side, after a crash, after Ctrl-C; nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from l7proxy.lab.state import root
from tests.lab.conftest import ROOT, Cluster
from tests.lab.test_resilience import URL, until

pytestmark = pytest.mark.lab


def traces(name: str) -> list[str]:
    """The remains of a lab: files, namespaces, and processes that name it."""
    found = [str(path) for path in root().glob(f"{name}*")]
    found += [str(path) for path in Path("/run/netns").glob(f"l7lab_{name}*")]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"/{name}/" in line or f"--name {name}" in line:
                found.append(f"{entry.name}: {line}")
    return found


def links() -> set[str]:
    done = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
    return {line.split(": ")[1] for line in done.stdout.splitlines()}


def test_two_labs_side_by_side_do_not_know_each_other() -> None:
    one, two = Cluster(f"a{os.getpid()}"), Cluster(f"b{os.getpid()}")
    before = links()
    try:
        one.run("up")
        two.run("up", "--cni", "ptp", "--backend", "iptables")
        assert (one.curl("frontend", URL), two.curl("frontend", URL)) == ("200", "200")
        one.run("down")
        assert two.curl("frontend", URL) == "200"
        assert two.curl("frontend", "http://backend/admin") == "403"
        assert traces(one.name) == []
    finally:
        one.run("down")
        two.run("down")
    assert (traces(one.name), traces(two.name)) == ([], [])
    assert links() == before
    assert one.run("down").returncode == 0  # repeating it is fine


def starting(lab: Cluster, *arguments: str) -> subprocess.Popen[bytes]:
    """`lab up`, in the middle: some of its namespaces exist."""
    argv = Cluster.argv("up", "--name", lab.name, *arguments)
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: len(list(root().glob(f"{lab.name}/pods/*"))) > 1, "lab up does not get going")
    return process


POD = """
apiVersion: v1
kind: Pod
metadata: {{name: pod-{number}}}
spec: {{nodeName: node-1, containers: [{{name: shell, image: busybox, command: [sleep, infinity]}}]}}
---"""


def test_ctrl_c_in_the_middle_of_up_leaves_nothing(tmp_path: Path) -> None:
    many = "".join(POD.format(number=number) for number in range(60))  # seconds of work, to be caught in the middle
    (tmp_path / "pods.yaml").write_text("{apiVersion: v1, kind: Node, metadata: {name: node-1}}\n---" + many)
    lab = Cluster(f"c{os.getpid()}")
    with starting(lab, "-f", str(tmp_path)) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert traces(lab.name) == []


def test_up_after_a_crash_in_the_middle_of_up_recovers() -> None:
    lab = Cluster(f"d{os.getpid()}")
    with starting(lab) as process:
        process.kill()
        process.wait(30)
    assert traces(lab.name) != []
    try:
        lab.run("up")
        assert lab.curl("frontend", URL) == "200"
    finally:
        lab.run("down")
    assert traces(lab.name) == []


def test_a_drop_is_a_timeout_where_that_is_configured() -> None:
    lab = Cluster(f"e{os.getpid()}")
    try:
        lab.run("up", "--refuse", "drop")
        start = time.monotonic()
        assert lab.exec("stranger", "curl", "-s", "-m", "1", URL.replace("backend", "backend.default")).returncode == 28
        assert time.monotonic() - start > 0.9
        assert lab.curl("frontend", URL) == "200"
    finally:
        lab.run("down")
