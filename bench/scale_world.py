"""Generates the objects of a very large cluster, as a Kubernetes API server stores them. Deterministic.

Ten pods are replicas of one workload, which is a Service with an EndpointSlice for every 15 pods. Pods are as big as
real ones (some 5 KB: managedFields, environment, conditions), though an agent needs little of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

Document = dict[str, Any]

NAMESPACES: Final = 500
REPLICAS: Final = 10
PORT: Final = 8080
STAMP: Final = "2026-01-01T00:00:00Z"
HERE: Final = {"where": "here"}
"""Label of the pods on the node under test."""


@dataclass(frozen=True, slots=True)
class Size:
    nodes: int = 5_000
    pods: int = 150_000
    services: int = 10_000
    policies: int = 1_000

    def __str__(self) -> str:
        return f"{self.nodes} nodes, {self.pods} pods, {self.services} Services, {self.policies} policies"


def objects(size: Size, node: str) -> Iterator[Document]:
    """All of them. `node`: one more node, the one under test, has its share of the pods."""
    for number in range(NAMESPACES):
        yield _object("v1", "Namespace", f"team-{number}", labels={"kubernetes.io/metadata.name": f"team-{number}"})
        yield _object("v1", "ServiceAccount", "default", f"team-{number}")
    yield from (_node(number) for number in range(1, size.nodes))
    yield from (pod(size, number, node) for number in range(size.pods))
    for number in range(size.services):
        yield from _service(size, number)
    yield from (_policy(number) for number in range(size.policies))


def pod(size: Size, number: int, node: str, generation: int = 0) -> Document:
    """`generation`: how often it was replaced; the address stays, the name is new."""
    app, place = number // REPLICAS, number % size.nodes
    namespace, name = f"team-{app % NAMESPACES}", f"app-{app}-5d9c7b8f4-{number:x}{'abcdefghij'[generation % 10]}"
    address = _address(number)
    labels = {
        "app": f"app-{app}",
        "team": f"team-{app % NAMESPACES}",
        "tier": ("web", "cache", "db")[app % 3],
        "pod-template-hash": "5d9c7b8f4",
        **({} if place else HERE),
    }
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": f"app-{app}-5d9c7b8f4",
        "uid": _uid(1, app),
        "controller": True,
        "blockOwnerDeletion": True,
    }
    container = {
        "name": "main",
        "image": f"registry.example/team/app-{app}:1.0",
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "env": [{"name": f"SETTING_{index}", "value": "a value of usual length"} for index in range(30)],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
    }
    status = {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": STAMP}
            for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
        ],
        "containerStatuses": [
            {"name": "main", "ready": True, "image": container["image"], "imageID": "i" * 70, "restartCount": 0}
        ],
    }
    fields: Document = {f"f:field-{index}": {} for index in range(100)}
    return _object(
        "v1",
        "Pod",
        name,
        namespace,
        labels=labels,
        uid=_uid(0, number, generation),
        ownerReferences=[owner],
        managedFields=[
            {"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": STAMP, "fieldsV1": fields}
        ],
    ) | {
        "spec": {
            "nodeName": f"far-{place}" if place else node,
            "serviceAccountName": "default",
            "containers": [container],
        },
        "status": status,
    }


def _node(number: int) -> Document:
    cidr = f"10.{128 + (number >> 8)}.{number & 255}.0/24"
    return _object("v1", "Node", f"far-{number}", labels={"topology.kubernetes.io/zone": f"zone-{number % 3}"}) | {
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": f"172.30.{number >> 7}.{1 + (number & 127)}"}],
        },
    }


def _service(size: Size, number: int) -> Iterator[Document]:
    """The Service of a workload, and its EndpointSlice of as many pods as there are per Service."""
    namespace, app = f"team-{number % NAMESPACES}", f"app-{number}"
    address = f"10.96.{1 + number // 250}.{1 + number % 250}"
    yield _object("v1", "Service", app, namespace) | {
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "selector": {"app": app},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": PORT}],
        }
    }
    each = size.pods // size.services
    endpoints = [
        {"addresses": [_address(index)], "conditions": {"ready": True}}
        for index in range(number * each, (number + 1) * each)
    ]
    yield _object(
        "discovery.k8s.io/v1", "EndpointSlice", f"{app}-x", namespace, labels={"kubernetes.io/service-name": app}
    ) | {
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}],
    }


def _policy(number: int) -> Document:
    """In its namespace one tier may be asked by another one and by one workload, on one port; some by HTTP rules."""
    namespace = f"team-{number % NAMESPACES}"
    ports: Document = {"ports": [{"port": str(PORT), "protocol": "TCP"}]}
    if number % 10 == 0:
        ports["rules"] = {"http": [{"method": "GET", "path": f"/api/{number}/.*"}]}
    peers = [{"matchLabels": {"tier": "web"}}, {"matchLabels": {"app": f"app-{number}"}}]
    return _object("cilium.io/v2", "CiliumNetworkPolicy", f"policy-{number}", namespace) | {
        "spec": {
            "endpointSelector": {"matchLabels": {"tier": ("db", "cache")[number // NAMESPACES % 2]}},
            "ingress": [{"fromEndpoints": peers, "toPorts": [ports]}],
        }
    }


def _object(version: str, kind: str, name: str, namespace: str = "", **metadata: Any) -> Document:
    place = {"namespace": namespace} if namespace else {}
    stamped = {"uid": _uid(2, hash_of(kind, namespace, name)), "creationTimestamp": STAMP}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **place, **stamped, **metadata}}


def hash_of(*parts: str) -> int:
    """The same in every process."""
    return int.from_bytes("/".join(parts).encode(), "big") % 0xFFFFFFFFFFC5


def _uid(sort: int, number: int, generation: int = 0) -> str:
    return f"{generation:08x}-0000-4000-800{sort}-{number:012x}"


def _address(number: int) -> str:
    return f"10.{128 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
