"""The lab of the HTTP/2 and gRPC tests: one server pod on node-1, a client beside it and one on the other node."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.lab.conftest import Cluster

MANIFESTS: Final = """
{apiVersion: v1, kind: Node, metadata: {name: node-1}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-2}}
---
apiVersion: v1
kind: Pod
metadata:
  name: server
  labels: {app: server}
  annotations: {lab.l7proxy.io/serve: "h2c:8081, grpc:50051, http:8082"}
spec: {nodeName: node-1, containers: [{name: echo, image: lab.l7proxy.io/echo}]}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports:
  - {name: web, port: 8081}
  - {name: grpc, port: 50051}
  - {name: nobody, port: 50052}
  - {name: old, port: 8082}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec: {nodeName: node-1, containers: [{name: shell, image: x, command: [sleep, infinity]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: client}}
spec: {nodeName: node-2, containers: [{name: shell, image: x, command: [sleep, infinity]}]}
---
"""
POLICY: Final = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: "8081", protocol: TCP}, {port: "8082", protocol: TCP}]
      rules: {http: [{path: "/api/.*"}]}
    - ports: [{port: "50051", protocol: TCP}, {port: "50052", protocol: TCP}]
      rules: {http: [{method: POST, path: "/echo.Echo/(Unary|ServerStream|ClientStream|Bidi)"}]}
"""
LABS: Final = {
    "bridge-nftables-4": ("--cni", "bridge", "--backend", "nftables"),
    "ptp-iptables-6": ("--cni", "ptp", "--backend", "iptables", "--ip-family", "6"),
}


@contextlib.contextmanager
def http2_lab(which: str, directory: Path) -> Iterator[Cluster]:
    manifest = directory / "http2.yaml"
    manifest.write_text(MANIFESTS + POLICY)
    lab = Cluster(f"h2{which.partition('-')[0]}{os.getpid()}")
    lab.run("up", "-f", str(manifest), *LABS[which])
    try:
        yield lab
    finally:
        lab.run("down")


def python(lab: Cluster, pod: str, script: str, *arguments: str) -> Any:
    """The JSON output of a Python script run in a pod."""
    done = lab.exec(pod, sys.executable, "-c", script, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def flows(lab: Cluster, *arguments: str) -> list[dict[str, Any]]:
    """The flows of node-1, where the server is."""
    return lab.flows("node-1", *arguments)


def until(found: Callable[[], list[Any]], count: int) -> list[Any]:
    """Waits for the flows, which arrive late; the number must be exact and stay the same."""
    deadline = time.monotonic() + 5
    while len(seen := found()) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    if len(seen) != count:
        pytest.fail(f"{len(seen)} flows instead of {count}: {json.dumps(seen)[:2000]}")
    return seen
