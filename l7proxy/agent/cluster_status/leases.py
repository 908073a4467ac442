"""The Leases in l7proxy's own namespace: one per node with its summary, and the leader's.

A node's Lease is written when its summary changes, and never renewed. Its owner is the Node, so the cluster's garbage
collector removes it with the Node.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec

from l7proxy.agent.cluster_status.election import DURATION, Record
from l7proxy.agent.cluster_status.follow import Metadata, decoded, listed
from l7proxy.agent.cluster_status.summary import Summary, from_text
from l7proxy.sources.kubernetes.connection import APPLY_PATCH, Connection

LEADER: Final = "l7proxy-leader"
ANNOTATION: Final = "l7proxy.io/enforced"
LABEL: Final = "l7proxy.io/lease"
NODE_LEASES: Final[Mapping[str, str]] = {"labelSelector": f"{LABEL}=node"}
LEADER_LEASE: Final[Mapping[str, str]] = {"fieldSelector": f"metadata.name={LEADER}"}
MANAGER: Final = "l7proxy"
MAX_NAME: Final = 253
NO_RECORD: Final = Record()


class _Spec(msgspec.Struct):
    holderIdentity: str | None = None  # noqa: N815 -- as in the API
    leaseDurationSeconds: int | None = None  # noqa: N815
    leaseTransitions: int | None = None  # noqa: N815
    acquireTime: str | None = None  # noqa: N815


class _Lease(msgspec.Struct):
    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: _Spec = msgspec.field(default_factory=_Spec)


class _Named(msgspec.Struct):
    metadata: Metadata = msgspec.field(default_factory=Metadata)


def leases(namespace: str, name: str = "") -> str:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    return f"{path}/{name}" if name else path


def name_of(node: str) -> str:
    """The name of a node's Lease: no node's is that of the leader's Lease."""
    name = f"node.{node}"
    return name if len(name) <= MAX_NAME else f"node.{blake2b(node.encode(), digest_size=16).hexdigest()}"


async def owner(api: Connection, node: str) -> dict[str, Any] | None:
    """The reference to our Node; None if it does not exist. ApiError."""
    path = "/api/v1/nodes"
    found, _ = await listed(api, path, {"fieldSelector": f"metadata.name={node}"})
    for one in found:
        uid = decoded(one, _Named, path).metadata.uid
        return {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
    return None


async def publish(
    api: Connection, namespace: str, node: str, text: str, now: str, owned_by: Mapping[str, Any] | None
) -> None:
    """Write the summary of our node, `text`. ApiError."""
    name = name_of(node)
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": {LABEL: "node", "app.kubernetes.io/managed-by": "l7proxy"},
        "annotations": {ANNOTATION: text},
        **({"ownerReferences": [owned_by]} if owned_by else {}),
    }
    body = _lease(metadata, {"holderIdentity": node, "renewTime": now})
    await api.request(
        "PATCH",
        leases(namespace, name),
        query={"fieldManager": MANAGER, "force": "true"},
        body=body,
        content_type=APPLY_PATCH,
    )


def summary_in(lease: bytes) -> tuple[str, Summary | None]:
    """(node, its summary); None when it cannot be read. ApiError when it is no Lease."""
    found = decoded(lease, _Lease, "leases")
    text = found.metadata.annotations.get(ANNOTATION, "")
    return found.spec.holderIdentity or "", from_text(text)


def record_in(lease: bytes) -> Record:
    """ApiError when it is no Lease."""
    found = decoded(lease, _Lease, "leases")
    return Record(
        holder=found.spec.holderIdentity or "",
        version=found.metadata.resourceVersion,
        duration=found.spec.leaseDurationSeconds or DURATION,
        transitions=found.spec.leaseTransitions or 0,
        acquired=found.spec.acquireTime or "",
    )


async def write(api: Connection, namespace: str, record: Record, now: str) -> Record:
    """Replace version `record.version` of the leader's Lease, or create it. ApiError: 409 when another was faster."""
    metadata = {
        "name": LEADER,
        "namespace": namespace,
        "labels": {LABEL: "leader", "app.kubernetes.io/managed-by": "l7proxy"},
        **({"resourceVersion": record.version} if record.version else {}),
    }
    spec = {
        "holderIdentity": record.holder,
        "leaseDurationSeconds": record.duration,
        "leaseTransitions": record.transitions,
        "acquireTime": record.acquired or now,
        "renewTime": now,
    }
    method, path = ("PUT", leases(namespace, LEADER)) if record.version else ("POST", leases(namespace))
    return record_in(await api.request(method, path, body=_lease(metadata, spec), timeout=10.0))


def _lease(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
