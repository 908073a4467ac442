"""headerMatches on real packets: the policy writes a secret header, the backend sees it, and no output shows it.

The sender's own policy writes the header on its node (as in the egress example of Cilium's connectivity tests); the
backend refuses requests without it by an ingress policy of its own.
"""

from __future__ import annotations

import json
import os
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import ROOT, Cluster

pytestmark = pytest.mark.lab

PLANTED = "hunter2-planted-in-the-lab"
MANIFEST = f"""
apiVersion: v1
kind: Secret
metadata: {{name: token, namespace: default}}
data: {{token: {b64encode(f"Bearer {PLANTED}".encode()).decode()}}}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: sender}}
spec:
  endpointSelector: {{matchLabels: {{app: frontend}}}}
  egress:
  - toPorts:
    - ports: [{{port: "80", protocol: TCP}}]
      rules:
        http:
        - path: "/secret/.*"
          headerMatches:
          - {{name: Authorization, mismatch: REPLACE, secret: {{name: token}}}}
          - {{name: X-Internal, value: "yes", mismatch: DELETE}}
        - path: "/missing/.*"
          headerMatches:
          - {{name: Authorization, mismatch: REPLACE, secret: {{name: nobody}}}}
        - path: "/plain/.*"
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: receiver}}
spec:
  endpointSelector: {{matchLabels: {{app: backend}}}}
  ingress:
  - toPorts:
    - ports: [{{port: "80", protocol: TCP}}]
      rules:
        http:
        - path: "/secret/.*"
          headerMatches:
          - {{name: Authorization, secret: {{name: token}}}}
        - path: "/missing/.*"
"""
FOREIGN = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: thief, namespace: elsewhere}
spec:
  endpointSelector: {}
  egress:
  - toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules:
        http:
        - headerMatches:
          - {name: X-Loot, mismatch: ADD, secret: {namespace: default, name: token}}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The demo's pods under policies of this test."""
    made = Cluster(f"hm{os.getpid()}")
    file = tmp_path_factory.mktemp("header-matches") / "policies.yaml"
    file.write_text(MANIFEST)
    demo = ROOT / "deploy" / "demo"
    made.run("up", "-f", str(demo / "cluster.yaml"), "-f", str(demo / "pods.yaml"), "-f", str(file))
    try:
        yield made
    finally:
        made.run("down")


def headers(lab: Cluster, pod: str, path: str, *arguments: str) -> dict[str, list[str]]:
    """The headers that the backend saw, by lower case name."""
    done = lab.exec(pod, "curl", "-s", "-m", "5", *arguments, f"http://backend.default{path}")
    found: dict[str, list[str]] = {}
    for name, value in json.loads(done.stdout)["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


@pytest.mark.parametrize("pod", ["frontend", "frontend-far"])
def test_the_backend_sees_what_the_policy_writes(lab: Cluster, pod: str) -> None:
    seen = headers(lab, pod, "/secret/1")
    assert seen["authorization"] == [f"Bearer {PLANTED}"]
    seen = headers(lab, pod, "/secret/2", "-H", "Authorization: Basic b3RoZXI=", "-H", "X-Internal: no", "-H", "X-K: 1")
    assert seen["authorization"] == [f"Bearer {PLANTED}"]
    assert "x-internal" not in seen
    assert seen["x-k"] == ["1"]


def test_without_it_the_backends_policy_refuses(lab: Cluster) -> None:
    assert lab.curl("stranger", "http://backend/secret/1") == "403"
    assert lab.curl("stranger", "-H", "Authorization: Bearer guess", "http://backend/secret/1") == "403"
    assert lab.curl("stranger", "-H", f"Authorization: Bearer {PLANTED}", "http://backend/secret/1") == "200"


def test_with_a_body_and_on_one_connection(lab: Cluster) -> None:
    urls = [f"http://backend/secret/{number}" for number in range(5)]
    done = lab.exec("frontend", "curl", "-s", "-m", "5", "-d", "x" * 300, *urls)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["body"] for answer in answers] == [300] * 5
    assert all(["Authorization", f"Bearer {PLANTED}"] in answer["headers"] for answer in answers)


def test_11_47_a_missing_secret_matches_nothing_and_status_says_so(lab: Cluster) -> None:
    assert lab.curl("frontend", "-H", "Authorization: x", "http://backend/missing/1") == "403"
    assert lab.curl("stranger", "http://backend/missing/1") == "200"
    problems = [problem["message"] for problem in lab.agent("node-1")["source"]["problems"]]
    assert "Secret default/nobody does not exist: this headerMatches item matches no request" in problems


def test_an_allowed_host_changes_no_destination(lab: Cluster) -> None:
    """Host is evaluated but does not route: the request goes to its packets' destination."""
    answer = lab.exec("frontend", "curl", "-s", "-m", "5", "-H", "Host: elsewhere.example", "http://backend/secret/1")
    seen = json.loads(answer.stdout)
    assert seen["server"] == "backend"
    assert ["Host", "elsewhere.example"] in seen["headers"]


def test_a_policy_of_another_namespace_does_not_get_the_secret(lab: Cluster, tmp_path: Path) -> None:
    lab.apply(FOREIGN, tmp_path)
    try:
        (thief,) = [one for one in lab.agent("node-2")["policies"] if one["name"] == "thief"]
        assert thief["state"] == "refused"
        assert "policies of namespace elsewhere cannot use secrets of default" in thief["reason"]
        assert lab.curl("elsewhere/frontend", "http://backend.default/secret/1") in ("exit 7", "exit 28", "exit 6")
    finally:
        lab.delete(FOREIGN, tmp_path)


def test_a_changed_secret_is_used_at_once(lab: Cluster, tmp_path: Path) -> None:
    text = "{apiVersion: v1, kind: Secret, metadata: {name: token, namespace: default}, stringData: {token: %s}}"
    try:
        lab.apply(text % "second-planted", tmp_path)
        assert headers(lab, "frontend", "/secret/1")["authorization"] == ["second-planted"]
    finally:
        lab.apply(MANIFEST.partition("---")[0], tmp_path)
    assert headers(lab, "frontend", "/secret/1")["authorization"] == [f"Bearer {PLANTED}"]


def test_nothing_shows_the_secret(lab: Cluster) -> None:
    """All output of l7proxy after all of the above: flows, policies, status, endpoints, trace, logs, files."""
    marker = f"/secret/{time.monotonic_ns()}"
    assert lab.curl("frontend", f"http://backend{marker}") == "200"
    assert lab.curl("stranger", "-H", f"Authorization: Bearer {PLANTED}x", f"http://backend{marker}x") == "403"
    deadline = time.monotonic() + 5
    flows = lab.flows("node-1")
    while not any(marker in json.dumps(flow) for flow in flows):
        flows = lab.flows("node-1")
        assert time.monotonic() < deadline, "no flow of the request"
    texts = {"flows": json.dumps(flows)}
    remarks = [" ".join(flow.get("policy_log", ())) for flow in flows if marker in json.dumps(flow)]
    assert any("header missing: authorization" in remark for remark in remarks)
    run = Path(json.loads(lab.run("status", "-o", "json", check=False).stdout)["directory"]) / "nodes"
    for node in ("node-1", "node-2"):
        for command in (["status"], ["policy", "get"], ["policy", "list"], ["endpoint", "list"], ["identity", "list"]):
            for output in ("json", "table"):
                argv = [
                    "python3",
                    "-m",
                    "l7proxy.cli.main",
                    *command,
                    "-o",
                    output,
                    "--run-dir",
                    str(run / node / "run"),
                ]
                argv[0] = lab.argv()[0]
                done = lab.exec(f"node/{node}", *argv)
                texts[f"{node} {command} {output}"] = done.stdout + done.stderr
    trace = ["--from", "default/frontend", "--to", "default/backend", "--port", "80/TCP", "--http", "GET /secret/1"]
    argv = [lab.argv()[0], "-m", "l7proxy.cli.main", "policy", "trace", *trace]
    texts["trace"] = lab.exec("node/node-1", *argv, "--run-dir", str(run / "node-1" / "run")).stdout
    assert "header Authorization set: [redacted]" in texts["trace"]
    assert "[redacted] (secret default/token)" in texts["node-1 ['policy', 'get'] json"]
    for file in run.rglob("*"):
        if file.is_file():
            texts[str(file)] = file.read_text(errors="replace")
    texts["lab logs"] = lab.run("logs", check=False).stdout
    shown = [place for place, text in texts.items() if PLANTED in text and "manifests" not in place]
    assert not shown
