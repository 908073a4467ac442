"""Pods of the node with real packets: what the node itself may reach, and addresses that only the CNI knows yet."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from l7proxy.agent import client
from l7proxy.lab.state import Lab
from tests.lab.conftest import Cluster

pytestmark = pytest.mark.lab

PODS = """
apiVersion: v1
kind: Node
metadata: {name: only}
spec: {podCIDR: 10.78.0.0/24}
---
apiVersion: v1
kind: Pod
metadata:
  name: server
  labels: {app: server}
  annotations: {lab.l7proxy.io/serve: "http:8080,http:8081,http:8082"}
spec:
  nodeName: only
  containers:
  - name: web
    image: none
    ports: [{name: web, containerPort: 8080}]
    livenessProbe: {httpGet: {port: web, path: "/livez?full=1"}}
    readinessProbe: {tcpSocket: {port: 8081}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec: {nodeName: only}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress: [{fromEndpoints: [{matchLabels: {app: nobody}}]}]
"""
UID = "0d4b9a52-0000-4000-8000-000000000001"
PATIENCE = 20.0


LABS = [("bridge", "nftables"), ("ptp", "iptables")]


@pytest.fixture(scope="module", params=LABS, ids="-".join)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    manifests = tmp_path_factory.mktemp("pods") / "pods.yaml"
    manifests.write_text(PODS)
    cni, backend = request.param
    made = Cluster(f"n{os.getpid()}")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("L7PROXY_NODE_ACCESS", "probes")
        made.run("up", "-f", str(manifests), "--cni", cni, "--backend", backend)
    try:
        yield made
    finally:
        made.run("down")


def status(lab: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = client.ask(Lab(lab.name).run_directory("only") / client.SOCKET_NAME, "status")
    return found


def server(lab: Cluster) -> dict[str, Any]:
    return next(one for one in status(lab)["endpoints"] if one["name"] == "server")


def test_the_node_reaches_the_probes_and_nothing_else(lab: Cluster) -> None:
    (address,) = server(lab)["addresses"]
    base = f"http://{address}"
    assert lab.curl("node/only", f"{base}:8080/livez?full=1") == "200"
    assert lab.curl("node/only", f"{base}:8081/any") == "200", "of a tcpSocket probe only the port is known"
    assert lab.curl("node/only", f"{base}:8080/admin") == "403"
    assert lab.curl("node/only", "-X", "POST", f"{base}:8080/livez?full=1") == "403"
    assert lab.curl("node/only", "-m", "1", f"{base}:8082/").startswith("exit ")
    assert lab.curl("client", "-m", "1", f"{base}:8080/livez?full=1").startswith("exit ")


@pytest.mark.parametrize("lab", LABS[:1], indirect=True, ids="-".join)
def test_a_pod_is_enforced_by_the_address_of_the_cni_before_its_object_has_one(lab: Cluster) -> None:
    before, place = server(lab), Lab(lab.name).directory
    (result,) = (one for one in (place / "nodes/only/cni").iterdir() if '"server"' in one.read_text())
    cached = json.loads(result.read_text())
    cached["cniArgs"].append(["K8S_POD_UID", UID])
    replace(result, json.dumps(cached))
    (manifest,) = (place / "manifests").glob("*pod*server*")
    told = manifest.read_text()
    document = yaml.safe_load(told)
    document["metadata"]["uid"] = UID
    del document["status"]
    replace(manifest, json.dumps(document))
    try:
        wait(lab, manifest)
        assert server(lab) == before
        assert lab.curl("node/only", f"http://{before['addresses'][0]}:8080/admin") == "403"
        document["metadata"]["uid"] = "another"
        replace(manifest, json.dumps(document))
        wait(lab, manifest)
        found = status(lab)
        assert [one["pod"] for one in found["unknown_pods"]] == ["default/server"]
        assert lab.curl("client", "-m", "1", f"http://{before['addresses'][0]}:8081/").startswith("exit ")
    finally:
        replace(manifest, told)


def replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.replace(path)


def wait(lab: Cluster, manifest: Path) -> None:
    """Until this version of the manifest is enforced."""
    end = time.monotonic() + PATIENCE
    while True:
        found = status(lab)
        seen = (found["source"]["detail"] or {}).get(manifest.name)
        if seen == manifest.stat().st_mtime_ns and found["revision"] == found["enforced_revision"]:
            return
        assert time.monotonic() < end, found["source"]
        time.sleep(0.05)
