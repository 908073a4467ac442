"""HTTP settings of a node apply to the clients of its pods; WebSockets live as long as policy allows them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import Cluster

pytestmark = pytest.mark.lab

CONFIGURATION = "{deny-header: true, connect: true, matrix-parameters: pass, escaped-slashes: refuse}"
PODS = """
apiVersion: v1
kind: Node
metadata: {name: only}
spec: {podCIDR: 10.77.0.0/24}
---
apiVersion: v1
kind: Pod
metadata:
  name: server
  labels: {app: server}
  annotations: {lab.l7proxy.io/serve: "http:8080,ws:8082"}
spec: {nodeName: only}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec: {nodeName: only}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports: [{name: http, port: 8080}, {name: ws, port: 8082}]
---
"""
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: web}}
spec:
  endpointSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - fromEndpoints: [{{}}]
    toPorts:
    - ports: [{{port: "8080", protocol: TCP}}, {{port: "8082", protocol: TCP}}]
      rules:
        http: [{{method: GET, path: "/api/.*"}}, {{method: GET, path: "{path}"}}]
"""
CLIENT = """
import asyncio, sys
import aiohttp
async def main():
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect("http://server:8082/ws", max_msg_size=1 << 21) as talk:
            for line in sys.stdin:
                await talk.send_bytes(line.strip().encode() * 50000)
                message = await asyncio.wait_for(talk.receive(), 5)
                print(message.type.name, len(message.data) if message.data else 0, flush=True)
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    place = tmp_path_factory.mktemp("settings")
    (place / "config.yaml").write_text(CONFIGURATION)
    (place / "pods.yaml").write_text(PODS + POLICY.format(path="/ws"))
    made = Cluster(f"h{os.getpid()}")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("L7PROXY_CONFIG", str(place / "config.yaml"))
        made.run("up", "-f", str(place / "pods.yaml"))
    try:
        yield made
    finally:
        made.run("down")


def said(lab: Cluster, *arguments: str) -> str:
    return lab.exec("client", "curl", "-s", "-i", "-m", "5", "--path-as-is", *arguments).stdout


def test_refused_requests_are_told_why(lab: Cluster) -> None:
    head, _, _ = said(lab, "http://server:8080/private").partition("\n\n")
    assert head.startswith("HTTP/1.1 403 ")
    (line,) = [line for line in head.splitlines() if line.startswith("x-l7proxy-denied: ")]
    assert "policy default/web" in line
    assert "path does not match" in line


def test_escaped_slashes_are_refused_not_redirected(lab: Cluster) -> None:
    answer = said(lab, "http://server:8080/api/..%2Fprivate")
    assert answer.startswith("HTTP/1.1 400 ")
    assert "location" not in answer.lower()


def test_matrix_parameters_pass(lab: Cluster) -> None:
    assert '"path": "/api/x;y=1"' in said(lab, "http://server:8080/api/x;y=1")


def test_connect_is_judged(lab: Cluster) -> None:
    """By rules that allow GET only: 403, where without the setting it would be 405."""
    words = ("curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_connect}", "-p", "-x", "http://server:8080")
    assert lab.exec("client", *words, "http://elsewhere:443/").stdout == "403"


def test_a_websocket_lives_as_long_as_policy_lets_it(lab: Cluster, tmp_path: Path) -> None:
    client = lab.talk("client", CLIENT)
    assert client.stdin is not None
    assert client.stdout is not None
    with client:
        for _ in range(2):
            client.stdin.write("frame\n")
            client.stdin.flush()
            assert client.stdout.readline() == "BINARY 250000\n"
            lab.apply(POLICY.format(path="/ws|/more"), tmp_path)  # still allowed
        lab.apply(POLICY.format(path="/other"), tmp_path)
        client.stdin.write("frame\n")
        client.stdin.flush()
        assert "BINARY" not in client.stdout.readline()
        client.stdin.close()
        client.wait(10)
    opened = [flow["l7"]["http"] for flow in lab.flows("only", "--http-status", "101")]
    assert [(http["method"], http["url"]) for http in opened] == [("GET", "http://server:8082/ws")]
    flows = [flow for flow in lab.flows("only") if flow.get("verdict") == "DROPPED" and "l7" not in flow]
    assert [flow["ingress_denied_by"][0]["name"] for flow in flows] == ["web"]
