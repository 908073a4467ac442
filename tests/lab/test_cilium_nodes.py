"""Nodes and CIDR groups as peers on real packets: nodes by labels and by CIDR, and the local host is allowed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import Cluster

pytestmark = pytest.mark.lab

CONFIGURATION = "{enable-node-selector-labels: true, policy-cidr-match-mode: nodes}"
PODS = """
apiVersion: v1
kind: Node
metadata: {name: here, labels: {zone: east}}
spec: {podCIDR: 10.77.1.0/24}
---
apiVersion: v1
kind: Node
metadata: {name: west, labels: {zone: west}}
spec: {podCIDR: 10.77.2.0/24}
status: {addresses: [{type: InternalIP, address: 172.18.0.12}]}
---
apiVersion: v1
kind: Node
metadata: {name: far-east, labels: {zone: east}}
spec: {podCIDR: 10.77.3.0/24}
---
apiVersion: v1
kind: Pod
metadata:
  name: by-label
  labels: {app: by-label}
  annotations: {lab.l7proxy.io/serve: "http:8080"}
spec: {nodeName: here}
---
apiVersion: v1
kind: Pod
metadata:
  name: by-group
  labels: {app: by-group}
  annotations: {lab.l7proxy.io/serve: "http:8080"}
spec: {nodeName: here}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: west}
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: some-nodes}
spec: {externalCIDRs: [172.18.0.12/32, 192.0.2.0/24]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: by-label}
spec:
  endpointSelector: {matchLabels: {app: by-label}}
  ingress:
  - fromNodes: [{matchLabels: {zone: west}}]
    toPorts: [{ports: [{port: "8080", protocol: TCP}], rules: {http: [{path: /ok}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: by-group}
spec:
  endpointSelector: {matchLabels: {app: by-group}}
  ingress: [{fromCIDRSet: [{cidrGroupRef: some-nodes}]}]
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory: Path = tmp_path_factory.mktemp("nodes")
    (directory / "lab.yaml").write_text(PODS)
    (directory / "l7proxy.yaml").write_text(CONFIGURATION)
    lab = Cluster(f"n{os.getpid()}")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("L7PROXY_CONFIG", str(directory / "l7proxy.yaml"))
        lab.run("up", "-f", str(directory / "lab.yaml"))
    try:
        yield lab
    finally:
        lab.run("down")


def address(lab: Cluster, pod: str) -> str:
    found = lab.exec(pod, "hostname", "-I").stdout.split()
    return next(one for one in found if ":" not in one)


ROWS = [
    ("the node with that label", "node/west", "by-label", "/ok", "200"),
    ("its requests are judged", "node/west", "by-label", "/no", "403"),
    ("a node with another label", "node/far-east", "by-label", "/ok", "exit"),
    ("a pod on the node with that label", "client", "by-label", "/ok", "exit"),
    ("the local host, which no rule names", "node/here", "by-label", "/no", "200"),
    ("a node in the group", "node/west", "by-group", "/any", "200"),
    ("a node that is not in the group", "node/far-east", "by-group", "/any", "exit"),
    ("a pod, whatever the group", "client", "by-group", "/any", "exit"),
]


@pytest.mark.parametrize(("source", "pod", "path", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_who_gets_in(source: str, pod: str, path: str, expected: str, nodes: Cluster) -> None:
    assert nodes.curl(source, "-m", "2", f"http://{address(nodes, pod)}:8080{path}").startswith(expected)
