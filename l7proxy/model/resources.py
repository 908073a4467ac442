"""Facts: what a source says the cluster is. Frozen, plain, and nothing that enforcement does not need.

A source turns documents into facts and yields changes of them; the world folds changes into one picture. Addresses are
canonical text, protocols IP protocol numbers. `origin` tells where a fact was written, for messages only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from l7proxy.model.endpoint import Workload
from l7proxy.model.identity import NamedPort
from l7proxy.model.secret import Sealed


class ResourceKey(NamedTuple):
    """The name of an object: kinds of one group never share it with another's."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True, order=True)
class SourceLocation:
    """File and line; empty for facts that came over an API."""

    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something wrong among facts that are each fine alone, as two pods with one address."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.field, self.message) if part)


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    origin: SourceLocation = SourceLocation()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("Node", "", self.name)


@dataclass(frozen=True, slots=True)
class Namespace:
    """`annotations` are only those of ours, `l7proxy.io/…`."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    origin: SourceLocation = SourceLocation()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("Namespace", "", self.name)


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """Only for its labels: which account a pod has, the pod says."""

    namespace: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    origin: SourceLocation = SourceLocation()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("ServiceAccount", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class NetworkSet:
    """Calico's: networks with labels, which its selectors select beside pods. `namespace` is "" for a global one."""

    namespace: str
    name: str
    networks: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    origin: SourceLocation = SourceLocation()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("NetworkSet" if self.namespace else "GlobalNetworkSet", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class PolicyTier:
    """Calico's Tier. `passes`: what no policy of it decides goes on to the next tier, and is not denied."""

    name: str
    order: float
    passes: bool = False
    origin: SourceLocation = SourceLocation()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("Tier", "", self.name)


@dataclass(frozen=True, slots=True)
class Pod:
    """`host_network` pods have no identity of their own: their addresses are their node's."""

    namespace: str
    name: str
    node: str = ""
    addresses: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    named_ports: frozenset[NamedPort] = frozenset()
    service_account: str = "default"
    host_network: bool = False
    workload: Workload | None = None
    phase: str = ""
    origin: SourceLocation = SourceLocation()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("Pod", self.namespace, self.name)

    @property
    def finished(self) -> bool:
        """A finished pod has given its addresses back: another may carry them."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class ServicePort:
    """`target` is a number, or the name of a container port; pods may differ in what they call so."""

    port: int
    protocol: int
    target: int | str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """`addresses` are all that it is reached by: ClusterIPs, external and load balancer addresses."""

    namespace: str
    name: str
    addresses: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = field(default_factory=dict)
    headless: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    origin: SourceLocation = SourceLocation()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("Service", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class SlicePort:
    name: str
    port: int
    protocol: int


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """A part of a Service's backends; `addresses` are the ready ones."""

    namespace: str
    name: str
    service: str
    addresses: tuple[str, ...] = ()
    ports: tuple[SlicePort, ...] = ()
    origin: SourceLocation = SourceLocation()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("EndpointSlice", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class CidrGroup:
    """Prefixes outside the cluster that policies name together (CiliumCIDRGroup).

    `unread`: it exists, but what is in it cannot be told.
    """

    name: str
    networks: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    unread: bool = False
    origin: SourceLocation = SourceLocation()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("CiliumCIDRGroup", "", self.name)


@dataclass(frozen=True, slots=True)
class PolicyDocument:
    """A policy of any language, unread: the languages are the policy room's.

    `lines` maps field paths to lines. `fault` is set when the source already knows that the document cannot be
    honoured: it stands here all the same so that what it selects is refused, not forgotten.
    """

    kind: str
    namespace: str
    name: str
    document: Mapping[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    fault: str = ""
    fault_at: str = ""
    origin: SourceLocation = SourceLocation()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey(self.kind, self.namespace, self.name)

    def locate(self, path: str) -> tuple[str, int]:
        """Where a field is written: its own line, or that of the nearest field around it."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.origin.file, self.lines.get(path, self.origin.line)


@dataclass(frozen=True, slots=True)
class Secret:
    """Of use is only one that holds one thing: then `only` has it. Of others not even the values are kept."""

    namespace: str
    name: str
    entries: int
    only: Sealed | None = None
    origin: SourceLocation = SourceLocation()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("Secret", self.namespace, self.name)


Resource = (
    Node | Namespace | Pod | Service | EndpointSlice | ServiceAccount | Secret
    | CidrGroup | NetworkSet | PolicyTier | PolicyDocument
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Upsert:
    """This is now so, whatever was before."""

    resource: Resource


@dataclass(frozen=True, slots=True)
class Delete:
    """This is no more."""

    key: ResourceKey


@dataclass(frozen=True, slots=True)
class Synced:
    """The source has said all there was at its start: what has not been said does not exist."""


Change = Upsert | Delete | Synced
