"""Policies and nodes of these tests, as the API server has them."""

from __future__ import annotations

from typing import Any

from l7proxy.cluster.policy_status import PolicyPhase, PolicyStatus, status_of
from l7proxy.model.resources import PolicyDocument
from l7proxy.sources import objects

HTTP = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}
PLAIN = {"ports": [{"port": "80", "protocol": "TCP"}]}


def cnp(name: str, generation: int = 1, *, uid: str = "", http: bool = False, **spec: Any) -> dict[str, Any]:
    """The object of a CiliumNetworkPolicy in namespace shop."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "shop", "uid": uid or f"uid-{name}", "generation": generation},
        "spec": {"endpointSelector": {}, "ingress": [{"toPorts": [HTTP if http else PLAIN]}], **spec},
    }


def network_policy(name: str, generation: int = 1, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "generation": generation},
        "spec": {"podSelector": {}, **spec},
    }


def document(found: dict[str, Any]) -> PolicyDocument:
    return objects.policy(found)


def status(found: dict[str, Any]) -> PolicyStatus:
    return status_of(document(found))


def many(count: int, generation: int = 1) -> list[PolicyStatus]:
    return [
        PolicyStatus(
            "CiliumNetworkPolicy", "shop", f"p{one}", PolicyPhase.ACCEPTED, uid=f"u{one}", generation=generation
        )
        for one in range(count)
    ]
