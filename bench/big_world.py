"""Generates the manifests of a big cluster: thousands of nodes, pods and policies. Deterministic.

Pods have an app and a version; there are 50 namespaces of 20 apps, so about 2 000 identities. Each policy selects one
app of its namespace and allows two others and one of another namespace, on one or two ports; every tenth has HTTP
rules. The node under test has `local` pods, which are labelled `where: here`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Document = dict[str, Any]

NAMESPACES, APPS, PER_FILE = 50, 20, 100


@dataclass(frozen=True, slots=True)
class Size:
    pods: int = 10_000
    policies: int = 1_000
    local: int = 110


def write(size: Size, directory: Path, node: str) -> None:
    """Writes files of a hundred objects each; their names start with `big-`."""
    every = [*nodes(size), *pods(size, node), *policies(size)]
    for start in range(0, len(every), PER_FILE):
        lines = (json.dumps(document) for document in every[start : start + PER_FILE])
        (directory / f"big-{start // PER_FILE:04}.yaml").write_text("---\n" + "\n---\n".join(lines) + "\n")


def nodes(size: Size) -> Iterator[Document]:
    """The other nodes, and the namespaces."""
    for number in range(_others(size)):
        address = f"172.18.{1 + number // 200}.{1 + number % 200}"
        yield {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": f"far-{number}"},
            "spec": {"podCIDR": f"10.{100 + number // 250}.{number % 250}.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        }
    for number in range(NAMESPACES):
        name = f"team-{number}"
        labels = {"kubernetes.io/metadata.name": name, "stage": "prod" if number % 3 else "test"}
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def pods(size: Size, node: str) -> Iterator[Document]:
    for number in range(size.pods):
        if number < size.local:
            where, address = node, f"10.244.1.{100 + number}"
        else:
            far = (number - size.local) // 100
            where, address = f"far-{far}", f"10.{100 + far // 250}.{far % 250}.{10 + (number - size.local) % 100}"
        app = number // NAMESPACES % APPS
        here = {"where": "here"} if number < size.local else {}
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"pod-{number}",
                "namespace": f"team-{number % NAMESPACES}",
                "labels": {
                    "app": f"app-{app}",
                    "version": f"v{number // 1000 % 2}",
                    "tier": "back" if app % 2 else "front",
                    **here,
                },
            },
            "spec": {"nodeName": where, "containers": [{"name": "main", "image": "none"}]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        }


def policies(size: Size) -> Iterator[Document]:
    for number in range(size.policies):
        team, app = number % NAMESPACES, number // NAMESPACES % APPS
        peers = [{"matchLabels": {"app": f"app-{(app + step) % APPS}"}} for step in (1, 7)]
        peers.append(
            {
                "matchLabels": {
                    "k8s:io.kubernetes.pod.namespace": f"team-{(team + 1) % NAMESPACES}",
                    "app": f"app-{app}",
                }
            }
        )
        ports: Document = {"ports": [{"port": str(8000 + app), "protocol": "TCP"}, {"port": "9090", "protocol": "TCP"}]}
        if number % 10 == 0:
            ports["rules"] = {"http": [{"method": "GET", "path": f"/api/{app}/.*"}]}
        yield {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": f"policy-{number}", "namespace": f"team-{team}"},
            "spec": {
                "endpointSelector": {"matchLabels": {"app": f"app-{app}"}},
                "ingress": [{"fromEndpoints": peers, "toPorts": [ports]}],
            },
        }


def _others(size: Size) -> int:
    return -(-(size.pods - size.local) // 100)
