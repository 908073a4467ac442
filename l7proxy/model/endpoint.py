"""Endpoints: local pods that policy can select."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from l7proxy.model.identity import NamedPort
from l7proxy.model.ids import EndpointId, IdentityId
from l7proxy.model.labels import LabelSet


@dataclass(frozen=True, slots=True)
class Workload:
    """The pod's controlling owner, as Hubble shows it."""

    name: str
    kind: str


class Probe(NamedTuple):
    """What the kubelet asks of a container: a TCP port, and with `path` only `GET` of this path and query.

    `path` is "" where only the port can be checked: tcpSocket, grpc, HTTPS, and paths that servers may normalise.
    """

    port: int
    path: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod of this node: its addresses, its identity and its named ports.

    `audit`: traffic that policy would deny is allowed, and reported with verdict AUDIT. `node_access`: what this node
    itself may reach under a policy; None is everything.
    """

    id: EndpointId
    namespace: str
    name: str
    identity: IdentityId
    labels: LabelSet
    addresses: tuple[str, ...]
    named_ports: frozenset[NamedPort] = field(default_factory=frozenset)
    workload: Workload | None = None
    audit: bool = False
    node_access: tuple[Probe, ...] | None = None

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class Assignment:
    """The addresses that the CNI has assigned to a pod of this node. `uid`: the Pod object's, "" if not known."""

    namespace: str
    name: str
    uid: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NamedPod:
    """A pod as flows show it; `id`: its endpoint number on this node, 0 for pods of other nodes."""

    id: int
    namespace: str
    name: str
    workload: Workload | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """One address behind a Service port."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Frontend:
    """One address and port of a Service, with its backends. `protocol` is an IP protocol number."""

    namespace: str
    service: str
    address: str
    port: int
    protocol: int
    backends: tuple[Backend, ...] = ()
