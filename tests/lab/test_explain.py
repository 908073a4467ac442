"""On a live node: trace queries the agent, get shows what is enforced, audit allows and reports."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Cluster

pytestmark = pytest.mark.lab

PROGRAM = (sys.executable, "-m", "l7proxy.cli.main")
AUDITED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: strict, namespace: default, annotations: {l7proxy.io/audit: "%s"}}
spec:
  endpointSelector: {matchLabels: {app: frontend}}
  egress:
  - toEndpoints: [{matchLabels: {app: backend}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: /only}]}}]
"""
NAMESPACE = """
apiVersion: v1
kind: Namespace
metadata: {name: default, annotations: {l7proxy.io/audit: "%s"}}
"""


def on_node(cluster: Cluster, *command: str) -> subprocess.CompletedProcess[str]:
    resources = json.loads(cluster.run("status", "-o", "json", check=False).stdout)
    run_dir = str(Path(resources["directory"]) / "nodes" / "node-1" / "run")
    return cluster.exec("node/node-1", *PROGRAM, *command, "--run-dir", run_dir)


def trace(cluster: Cluster, source: str, *more: str) -> tuple[int, dict[str, Any]]:
    done = on_node(
        cluster, "policy", "trace", "--from", source, "--to", "default/backend", "--port", "80", "-o", "json", *more
    )
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("source", "request_", "verdict"),
    [
        ("default/frontend", "", "REDIRECTED"),
        ("default/frontend", "GET /api/x", "FORWARDED"),
        ("default/frontend", "GET /admin", "DROPPED"),
        ("default/frontend-far", "GET /api/x", "FORWARDED"),
        ("default/stranger", "", "DROPPED"),
        ("192.0.2.1", "", "DROPPED"),
    ],
)
def test_trace_asks_the_running_agent(cluster: Cluster, source: str, request_: str, verdict: str) -> None:
    code, found = trace(cluster, source, *(["--http", request_] if request_ else []))
    assert (code, found["verdict"]) == (verdict == "DROPPED", verdict)
    assert found["policy"]["name"] == "l7-policy"


def test_a_traced_denial_names_the_rule_that_came_nearest(cluster: Cluster) -> None:
    steps = "\n".join(trace(cluster, "default/stranger")[1]["steps"])
    assert "nearest: policy default/l7-policy spec.ingress[0]" in steps
    assert "it allows 80/TCP, not from identity" in steps


def test_trace_of_nobody_is_exit_code_2(cluster: Cluster) -> None:
    done = on_node(cluster, "policy", "trace", "--from", "default/nobody", "--to", "default/backend", "--port", "80")
    assert done.returncode == 2
    assert "no pod default/nobody" in done.stderr


def test_get_shows_what_is_enforced(cluster: Cluster) -> None:
    shown = on_node(cluster, "policy", "get", "default/backend").stdout
    assert "tier default" in shown
    assert "redirect" in shown
    assert "k8s:app=frontend, k8s:io.kubernetes.pod.namespace=default" in shown, "who the peers are"
    (found,) = json.loads(on_node(cluster, "policy", "get", "default/backend", "-o", "json").stdout)
    assert [tier["name"] for tier in found["ingress"]["tiers"]] == ["default"]


def test_an_audited_policy_lets_through_and_tells_and_enforced_it_refuses(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.curl("frontend", "http://backend/api/before") == "200"
    cluster.apply(AUDITED.replace("%s", "true"), tmp_path)
    try:
        shown = on_node(cluster, "status").stdout
        assert "Audit" in shown
        assert "CiliumNetworkPolicy default/strict" in shown
        assert cluster.curl("frontend", "http://backend/api/audited") == "200"
        requests = [flow for flow in _flows(cluster, verdict="AUDIT") if flow.get("l7")]
        assert [flow["l7"]["http"]["url"].endswith("/api/audited") for flow in requests] == [True]
        assert requests[0]["egress_denied_by"][0]["name"] == "strict"
        assert requests[0]["traffic_direction"] == "EGRESS"
        assert cluster.curl("frontend", "http://backend/admin") == "403", "the backend's own policy is enforced"
        cluster.exec("frontend", "curl", "-s", "-m", "2", "http://192.168.0.254:81/")
        opened = [flow for flow in _flows(cluster, verdict="AUDIT") if not flow.get("l7")]
        assert [flow["egress_denied_by"][0]["name"] for flow in opened] == ["strict"]
        cluster.apply(AUDITED.replace("%s", "false"), tmp_path)
        assert cluster.curl("frontend", "http://backend/api/enforced") == "403"
    finally:
        cluster.delete(AUDITED.replace("%s", "true"), tmp_path)


def test_an_audited_namespace_lets_through_and_tells_at_l4_and_l7(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.curl("stranger", "http://backend/api/x") == "exit 7"
    cluster.apply(NAMESPACE.replace("%s", "true"), tmp_path)
    try:
        assert cluster.curl("stranger", "http://backend/api/unasked") == "200"
        assert cluster.curl("frontend", "http://backend/admin/audited") == "200"
        told = _flows(cluster, verdict="AUDIT")
        assert "/admin/audited" in " ".join(flow["l7"]["http"]["url"] for flow in told if flow.get("l7"))
        opened = [flow for flow in told if not flow.get("l7") and flow["source"]["pod_name"] == "stranger"]
        assert {one["ingress_denied_by"][0]["name"] for one in opened} == {"l7-policy"}
        shown = on_node(cluster, "observe", "--verdict", "AUDIT", "--from-pod", "default/stranger").stdout
        assert "AUDITED" in shown
        assert "reason: no rule of policy default/l7-policy allows identity" in shown
    finally:
        cluster.apply(NAMESPACE.replace("%s", "false"), tmp_path)
    assert cluster.curl("stranger", "http://backend/api/x") == "exit 7"
    assert cluster.curl("frontend", "http://backend/admin") == "403"


def _flows(cluster: Cluster, *, verdict: str) -> list[dict[str, Any]]:
    time.sleep(0.3)  # the kernel's events come in batches
    return cluster.flows("node-1", "--verdict", verdict)
