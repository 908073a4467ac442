"""Pods and Services while the lab is up: created, changed and deleted as by kubectl; their processes and exits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Cluster

pytestmark = pytest.mark.lab

WEB = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: late, labels: {app: web}, annotations: {lab.l7proxy.io/serve: "http:8080"}}
spec: {containers: [{name: echo, image: none}]}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: late}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"""
RUNS = """
apiVersion: v1
kind: Pod
metadata: {name: runs, namespace: late}
spec:
  containers:
  - name: ends
    image: none
    command: [sh, -c]
    args: ["echo $GREETING; exit 3"]
    env: [{name: GREETING, value: hello}]
  - {name: absent, image: none, command: [/no/such/program]}
  - {name: idle, image: nginx}
"""
BUSY = """
apiVersion: v1
kind: Pod
metadata: {name: busy, namespace: late, annotations: {lab.l7proxy.io/serve: "tcp:7000,http:7000"}}
spec: {containers: [{name: echo, image: none}]}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Cluster]:
    """Without the agent: these tests are about the lab itself."""
    cluster = Cluster(f"p{os.getpid()}")
    cluster.run("up", "--no-agent", "--cni", "ptp")
    try:
        yield cluster
    finally:
        cluster.run("down")


def resources(lab: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.run("status", "-o", "json", check=False).stdout)
    return found


def pod(lab: Cluster, name: str) -> dict[str, Any]:
    (found,) = [each for each in resources(lab)["pods"] if each["name"] == name]
    return dict(found)


def nat(lab: Cluster) -> str:
    return lab.exec("node/node-1", "iptables", "-t", "nat", "-S").stdout


def test_a_pod_and_its_service_come_and_go(lab: Cluster, tmp_path: Path) -> None:
    before = (resources(lab), nat(lab), sorted(Path("/run/netns").glob(f"*_{lab.name}_*")))
    lab.apply(f"{WEB}---{SERVICE}", tmp_path)
    assert lab.curl("frontend", "http://web.late/x") == "200"
    assert lab.curl("frontend-far", "http://web.late.svc.cluster.local/x") == "200"
    assert lab.curl("frontend", "http://web/x") == "exit 6", "a short name is one of the pod's own namespace"
    assert pod(lab, "late/web")["alive"]
    lab.delete(f"{WEB}---{SERVICE}", tmp_path)
    assert lab.curl("frontend", "http://web.late/x") == "exit 6"
    assert (resources(lab), nat(lab)) == before[:2]
    if os.geteuid() == 0:
        assert sorted(Path("/run/netns").glob(f"*_{lab.name}_*")) == before[2]


def test_a_service_without_anyone_behind_it_refuses(lab: Cluster, tmp_path: Path) -> None:
    lab.apply(SERVICE, tmp_path)
    try:
        assert lab.curl("frontend", "http://web.late/x") == "exit 7"
    finally:
        lab.delete(SERVICE, tmp_path)


def test_a_changed_pod_is_made_anew_at_its_old_address(lab: Cluster, tmp_path: Path) -> None:
    lab.apply(WEB, tmp_path)
    try:
        old = pod(lab, "late/web")
        lab.apply(WEB.replace("http:8080", "http:9090"), tmp_path)
        new = pod(lab, "late/web")
        assert (new["addresses"], new["node"], new["listeners"]) == (old["addresses"], old["node"], ["http:9090"])
        (address,) = new["addresses"]
        assert lab.curl("frontend", f"http://{address}:9090/") == "200"
        assert lab.curl("frontend", f"http://{address}:8080/") == "exit 7"
    finally:
        lab.delete(WEB, tmp_path)


def test_what_became_of_containers_is_in_status_and_logs(lab: Cluster, tmp_path: Path) -> None:
    lab.apply(RUNS, tmp_path)
    try:
        states = {each["name"]: (each["state"], each["code"]) for each in pod(lab, "late/runs")["containers"]}
        assert states == {"ends": ("exited", 3), "absent": ("failed", None), "idle": ("idle", None)}
        told = lab.run("logs", "late/runs").stdout.splitlines()
        assert "late/runs ends: hello" in told
        assert "late/runs absent: /no/such/program: No such file or directory" in told
    finally:
        lab.delete(RUNS, tmp_path)


def test_a_pod_that_cannot_start_is_told_and_can_be_mended(lab: Cluster, tmp_path: Path) -> None:
    (tmp_path / "busy.yaml").write_text(BUSY)
    done = lab.run("apply", "-f", str(tmp_path / "busy.yaml"), check=False)
    assert done.returncode == 2
    assert "late/busy: http:7000: Address already in use" in done.stderr
    mended = BUSY.replace("http:7000", "http:7001")
    lab.apply(mended, tmp_path)
    try:
        assert pod(lab, "late/busy")["alive"]
    finally:
        lab.delete(mended, tmp_path)


def test_exec_passes_input_and_exit_code(lab: Cluster) -> None:
    assert lab.run("exec", "frontend", "--", "cat", stdin="to and fro").stdout == "to and fro"
    assert lab.exec("frontend", "sh", "-c", "exit 42").returncode == 42
    assert lab.exec("frontend", "no-such-command").returncode == 127
    assert lab.exec("frontend", "hostname").stdout == "frontend\n"
    assert lab.exec("elsewhere/frontend", "ls", "/sys/class/net").stdout.split() == ["eth0", "lo"]


def test_a_workload_that_needs_a_controller_is_refused_by_name(lab: Cluster, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n")
    done = lab.run("apply", "-f", str(tmp_path / "d.yaml"), check=False)
    assert done.returncode == 2
    assert "d.yaml:1: kind: Deployment default/d: the lab has no controllers" in done.stderr


def test_deleting_what_is_not_there_is_an_error(lab: Cluster, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(WEB)
    done = lab.run("delete", "-f", str(tmp_path / "w.yaml"), check=False)
    assert done.returncode == 2
    assert "not in the lab: Pod late/web" in done.stderr


def test_a_pod_that_died_is_made_anew_by_the_next_apply(lab: Cluster, tmp_path: Path) -> None:
    lab.apply(WEB, tmp_path)
    try:
        state = json.loads((Path(resources(lab)["directory"]) / "lab.json").read_text())
        os.kill(state["pods"]["late/web"]["process"]["pid"], 9)
        while pod(lab, "late/web")["alive"]:
            pass
        lab.apply(SERVICE, tmp_path)
        assert lab.curl("frontend", "http://web.late/x") == "200"
    finally:
        lab.delete(f"{WEB}---{SERVICE}", tmp_path)
