"""Flows as recorders write them, made by hand: for tests of what is learned from flows, and judged by them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from l7proxy.flows import flow
from l7proxy.flows.flow import Flow

RESERVED = {"host": 1, "world": 2, "health": 4, "remote-node": 6, "kube-apiserver": 7}


def pod(
    name: str,
    namespace: str = "default",
    labels: Mapping[str, str] | None = None,
    *,
    here: bool = True,
    cluster: str = "default",
) -> Any:
    """An end of a flow; `app` is its name unless labels are given."""
    own = labels or {"app": name}
    keys = {
        **own,
        "io.kubernetes.pod.namespace": namespace,
        "io.cilium.k8s.policy.cluster": cluster,
        "io.cilium.k8s.policy.serviceaccount": "default",
        "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": namespace,
    }
    return {
        "ID": 100 if here else 0,
        "identity": 1000,
        "namespace": namespace,
        "labels": sorted(f"k8s:{key}={value}" for key, value in keys.items()),
        "pod_name": name,
        "cluster_name": cluster,
    }


def reserved(*names: str) -> Any:
    return {"identity": RESERVED.get(names[0], 16777217), "labels": [f"reserved:{name}" for name in names]}


def made(
    source: Any,
    destination: Any,
    port: int = 80,
    *,
    http: str = "",
    verdict: str = "FORWARDED",
    direction: str = "INGRESS",
    protocol: str = "TCP",
    addresses: tuple[str, str] = ("10.0.0.1", "10.0.0.2"),
    source_port: int = 40000,
    **more: Any,
) -> dict[str, Any]:
    """One flow as a JSON object. `http`: `GET http://host/path`."""
    ends = {"source_port": source_port, "destination_port": port}
    l4: Mapping[str, Any] = {protocol: {"type": port} if protocol.startswith("ICMP") else ends}
    found: dict[str, Any] = {
        "time": "2025-11-23T20:00:00Z",
        "emitter": {"name": "l7proxy", "version": "1"},
        "verdict": verdict,
        "IP": {"source": addresses[0], "destination": addresses[1]},
        "l4": l4,
        "source": source,
        "destination": destination,
        "Type": "L7" if http else "L3_L4",
        "event_type": {"type": 129 if http else 5},
        "traffic_direction": direction,
        "is_reply": False,
    }
    if verdict == "DROPPED":
        found |= {"drop_reason_desc": "POLICY_DENIED", "drop_reason": 133, "is_reply": False if http else None}
    if http:
        method, _, url = http.partition(" ")
        found["l7"] = {"type": "REQUEST", "http": {"method": method, "url": url, "protocol": "HTTP/1.1"}}
    return found | more


def read(*flows: dict[str, Any]) -> list[Flow]:
    """The same as the reader of files makes of them."""
    found = [flow.of_object({"flow": one}).flow for one in flows]
    return [one for one in found if one is not None]


def lines(*flows: dict[str, Any]) -> str:
    return "".join(json.dumps({"flow": one, "node_name": "node-1"}) + "\n" for one in flows)
