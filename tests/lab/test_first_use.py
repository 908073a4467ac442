"""What a new user tries first: requests with curl, the flow of each, status, and the client address at the backend."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.lab.conftest import Cluster

pytestmark = pytest.mark.lab

DATA = ("-X", "POST", "-d", "{}", "http://backend/api/data")


@pytest.mark.parametrize(
    ("pod", "request_", "expected"),
    [
        pytest.param("frontend", ["http://backend/api/x"], "200", id="a path the policy allows"),
        pytest.param("frontend", ["http://backend/admin"], "403", id="a path it does not"),
        pytest.param("frontend", [*DATA], "403", id="POST without X-Token"),
        pytest.param("frontend", ["-H", "X-Token: any", *DATA], "200", id="POST with X-Token"),
        pytest.param("frontend-far", ["http://backend/api/x"], "200", id="from the other node"),
        pytest.param("stranger", ["http://backend.default/api/x"], "exit 7", id="a stranger is refused, not ignored"),
        pytest.param("stranger-far", ["http://backend.default/api/x"], "exit 7", id="so is one on the other node"),
    ],
)
def test_curl(cluster: Cluster, pod: str, request_: list[str], expected: str) -> None:
    assert cluster.curl(pod, *request_) == expected


def test_the_stranger_is_refused_at_once(cluster: Cluster) -> None:
    done = cluster.exec("stranger", "curl", "-s", "-m", "5", "-w", "%{time_total}", "http://backend.default/api/x")
    assert done.returncode == 7
    assert float(done.stdout) < 0.5


def test_the_backend_sees_the_client_pods_own_address(cluster: Cluster) -> None:
    own = cluster.exec("frontend", "ip", "-4", "-o", "addr", "show", "dev", "eth0").stdout.split()[3].partition("/")[0]
    answer = json.loads(cluster.exec("frontend", "curl", "-s", "-m", "5", "http://backend/api/x").stdout)
    assert answer["peer"] == own


def test_a_denial_is_told_once_with_policy_and_reason(cluster: Cluster) -> None:
    marker = f"/admin/{time.monotonic_ns()}"
    assert cluster.curl("frontend", f"http://backend{marker}") == "403"
    dropped = _until_flow(cluster, marker, verdict="DROPPED")
    assert [flow["ingress_denied_by"][0]["name"] for flow in dropped] == ["l7-policy"]
    assert dropped[0]["policy_log"] == [
        "no rule matched; nearest: policy default/l7-policy rule 1, method GET matched, path does not match /api/.*"
    ]


def test_an_allowed_request_has_a_request_and_a_response_flow(cluster: Cluster) -> None:
    marker = f"/api/{time.monotonic_ns()}"
    assert cluster.curl("frontend", f"http://backend{marker}") == "200"
    told = _until_flow(cluster, marker, verdict="FORWARDED", at_least=2)
    assert [flow["l7"]["type"] for flow in told] == ["REQUEST", "RESPONSE"]
    assert told[0]["source"]["pod_name"] == "frontend"
    assert told[1]["l7"]["http"]["code"] == 200


def test_status_says_that_all_is_enforced(cluster: Cluster) -> None:
    status = cluster.agent("node-1")
    assert status["enforced_revision"] == status["revision"] > 0
    assert [(p["name"], p["state"]) for p in status["policies"]] == [("l7-policy", "enforced")]


def test_bytes_that_are_no_http_are_refused_with_a_flow(cluster: Cluster) -> None:
    script = (
        "import socket; s = socket.create_connection(('backend', 80)); s.settimeout(5);"
        "s.sendall(b'\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03'); print(s.recv(100))"
    )
    done = cluster.exec("frontend", "python3", "-c", script)
    assert "400" in done.stdout
    deadline = time.monotonic() + 5
    while not any("TLS" in " ".join(f.get("policy_log", ())) for f in cluster.flows("node-1", "--verdict", "DROPPED")):
        assert time.monotonic() < deadline, "no flow tells of the TLS handshake"


def _until_flow(cluster: Cluster, marker: str, *, verdict: str, at_least: int = 1) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 5
    while True:
        found = [f for f in cluster.flows("node-1", "--verdict", verdict) if marker in f.get("Summary", "")]
        if len(found) >= at_least or time.monotonic() > deadline:
            return found
