"""ICMP rules on real packets; and a policy's log value in the flows of packets and of requests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.lab.conftest import Cluster

pytestmark = pytest.mark.lab

POLICY: Final = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: ping, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: stranger}}
  log: {value: seen by ping}
  ingress:
  - fromEndpoints: [{matchLabels: {app: frontend}}]
    icmps: [{fields: [{type: EchoRequest}]}]
  ingressDeny:
  - icmps: [{fields: [{type: 13}]}]
"""
PING: Final = """
import socket, struct, sys
kind, code, address = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
made.settimeout(1)
packet = struct.pack("!BBHHH12s", kind, code, 0, 7, 1, bytes(12))
total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
total = (total & 0xFFFF) + (total >> 16)
packet = packet[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + packet[4:]
for _ in range(2):
    made.sendto(packet, (address, 0))
    try:
        while True:
            answer = made.recv(200)
            if answer[(answer[0] & 15) * 4] in (0, 14):
                print("answered")
                sys.exit()
    except TimeoutError:
        pass
print("silence")
"""


@pytest.fixture(scope="module")
def stranger(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the pod under the policy."""
    directory = tmp_path_factory.mktemp("policy")
    cluster.apply(POLICY, directory)
    found = cluster.exec("stranger", "hostname", "-I").stdout.split()
    yield next(address for address in found if ":" not in address)
    cluster.delete(POLICY, directory)


def ping(cluster: Cluster, pod: str, address: str, kind: int, code: int = 0) -> str:
    done = cluster.exec(pod, sys.executable, "-c", PING, str(kind), str(code), address)
    return done.stdout.strip() or done.stderr


ROWS = [
    ("the type from the pod that may", "frontend", 8, 0, "answered"),
    ("from another node", "frontend-far", 8, 0, "answered"),
    ("with another code", "frontend", 8, 1, "answered"),
    ("a type that is denied", "frontend", 13, 0, "silence"),
    ("from a pod that may not", "backend", 8, 0, "silence"),
]


@pytest.mark.parametrize(("pod", "kind", "code", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_pings(pod: str, kind: int, code: int, expected: str, cluster: Cluster, stranger: str) -> None:
    assert ping(cluster, pod, stranger, kind, code) == expected


def test_no_other_protocol_is_let_in_by_it(cluster: Cluster, stranger: str) -> None:
    assert cluster.curl("frontend", f"http://{stranger}:8080/").startswith("exit")


def test_flows_name_the_type_the_policy_and_its_log(cluster: Cluster, stranger: str) -> None:
    assert ping(cluster, "frontend", stranger, 8) == "answered"
    assert ping(cluster, "frontend", stranger, 13) == "silence"
    flows = [flow for flow in cluster.flows("node-1") if flow.get("l4", {}).get("ICMPv4")]
    to_it = [flow for flow in flows if flow["IP"]["destination"] == stranger]
    passed = next(flow for flow in to_it if flow["verdict"] == "FORWARDED")
    refused = next(flow for flow in to_it if flow["verdict"] == "DROPPED" and flow["l4"]["ICMPv4"].get("type") == 13)
    assert passed["policy_log"] == ["seen by ping"]
    assert passed["ingress_allowed_by"][0]["name"] == "ping"
    assert refused["policy_log"] == ["denied by policy default/ping spec.ingressDeny[0].icmps[0]", "seen by ping"]


LOGGED: Final = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: logged, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: frontend}}
  log: {value: out of frontend}
  egress:
  - toEndpoints: [{matchLabels: {app: backend}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: /api/.*}]}}]
"""


def test_what_a_policy_wants_logged_is_in_the_flow_of_each_request(cluster: Cluster, tmp_path: Path) -> None:
    cluster.apply(LOGGED, tmp_path)
    try:
        assert cluster.curl("frontend", "http://backend/api/logged") == "200"
        assert cluster.curl("frontend", "http://backend/logged") == "403"
        requests = [flow for flow in cluster.flows("node-1", "--protocol", "http") if flow["l7"]["type"] == "REQUEST"]
        seen = {flow["l7"]["http"]["url"]: flow for flow in requests if flow["l7"]["http"]["url"].endswith("/logged")}
        assert seen["http://backend/api/logged"]["policy_log"] == ["out of frontend"]
        refused = seen["http://backend/logged"]["policy_log"]
        assert refused[0].startswith("no rule matched; nearest: policy default/logged")
    finally:
        cluster.delete(LOGGED, tmp_path)
