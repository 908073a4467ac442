"""Cluster resources as a source reads them: frozen, plain, with only the fields that enforcement needs.

A source turns documents into resources and yields their changes; ClusterState applies the changes. Addresses are
canonical text, protocols IP protocol numbers. `origin` is where the resource is written, for messages only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, get_args

from l7proxy.model.endpoint import Probe, Workload
from l7proxy.model.identity import NamedPort
from l7proxy.model.secret import Sealed


class ResourceKey(NamedTuple):
    """Identifies an object. Kinds of different API groups never share a key."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True, order=True)
class SourceLocation:
    """File and line; empty for resources that come from an API."""

    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A conflict between resources that are each valid alone, such as two pods with one address."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.field, self.message) if part)


class _ClusterWide:
    """Keyed by its class, which has the name of the Kubernetes kind."""

    __slots__ = ()
    name: str

    @property
    def key(self) -> ResourceKey:
        return ResourceKey(type(self).__name__, "", self.name)


class _Namespaced(_ClusterWide):
    __slots__ = ()
    namespace: str

    @property
    def key(self) -> ResourceKey:
        return ResourceKey(type(self).__name__, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Node(_ClusterWide):
    name: str
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    origin: SourceLocation = SourceLocation()


@dataclass(frozen=True, slots=True)
class Namespace(_ClusterWide):
    """`annotations` holds only `l7proxy.io/…`."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    origin: SourceLocation = SourceLocation()


@dataclass(frozen=True, slots=True)
class ServiceAccount(_Namespaced):
    """Used only for its labels: the Pod object names its account."""

    namespace: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    origin: SourceLocation = SourceLocation()


@dataclass(frozen=True, slots=True)
class NetworkSet:
    """Calico's NetworkSet: labelled networks that selectors match as they match pods. `namespace` is "" if global."""

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
    """Calico's Tier. `passes`: traffic that no policy of the tier decides goes to the next tier; else it is denied."""

    name: str
    order: float
    passes: bool = False
    origin: SourceLocation = SourceLocation()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("Tier", "", self.name)


@dataclass(frozen=True, slots=True)
class Pod(_Namespaced):
    """`host_network` pods have no identity of their own: they use their node's addresses.

    `terminating`: it is being deleted, but may still run. `uid`: only of a pod that has no address yet; there may be
    150 000 pods, and it is needed for nothing else. `probes`: sorted, only if they count; equal ones are
    one object. `key` is stored, since all indexes of pods hold it.
    """

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
    terminating: bool = False
    uid: str = ""
    probes: tuple[Probe, ...] = ()
    origin: SourceLocation = SourceLocation()
    key: ResourceKey = field(default=ResourceKey("Pod", "", ""), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", ResourceKey("Pod", self.namespace, self.name))

    @property
    def finished(self) -> bool:
        """A finished pod has released its addresses: another pod may use them."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class ServicePort:
    """`target` is a number, or the name of a container port, which may be a different number in each pod."""

    port: int
    protocol: int
    target: int | str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Service(_Namespaced):
    """`addresses` are all addresses of the Service: ClusterIPs, external and load balancer addresses."""

    namespace: str
    name: str
    addresses: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = field(default_factory=dict)
    headless: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    origin: SourceLocation = SourceLocation()


@dataclass(frozen=True, slots=True)
class SlicePort:
    name: str
    port: int
    protocol: int


@dataclass(frozen=True, slots=True)
class EndpointSlice(_Namespaced):
    """A part of a Service's backends; `addresses` are the ready ones."""

    namespace: str
    name: str
    service: str
    addresses: tuple[str, ...] = ()
    ports: tuple[SlicePort, ...] = ()
    origin: SourceLocation = SourceLocation()


@dataclass(frozen=True, slots=True)
class CidrGroup:
    """Prefixes outside the cluster that policies name as a group (CiliumCIDRGroup).

    `unread`: the object exists, but its content cannot be read.
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
    """A policy document of any language.

    `parsed`: what `policy.lang` made of it, rules (`lang.Read`) or the PolicyError that refuses them; it depends on the
    document alone, so it does not count in comparisons. `lines` maps field paths to lines. `fault` is set on a
    placeholder: why the object cannot be read. It is kept, so that traffic of the endpoints it selects is denied.
    """

    kind: str
    namespace: str
    name: str
    document: Mapping[str, Any]
    parsed: Any = field(compare=False)
    lines: Mapping[str, int] = field(default_factory=dict)
    fault: str = ""
    origin: SourceLocation = SourceLocation()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey(self.kind, self.namespace, self.name)

    def locate(self, path: str) -> tuple[str, int]:
        """(file, line) of a field, or of the nearest enclosing field."""
        return located(self.lines, self.origin, path)


def located(lines: Mapping[str, int], origin: SourceLocation, path: str) -> tuple[str, int]:
    """(file, line) of a field of an object, or of the nearest enclosing field."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return origin.file, lines.get(path, origin.line)


@dataclass(frozen=True, slots=True)
class Secret(_Namespaced):
    """Only a Secret with exactly one entry is usable; `only` is its value. Values of others are not kept."""

    namespace: str
    name: str
    entries: int
    only: Sealed | None = None
    origin: SourceLocation = SourceLocation()


Resource = (
    Node | Namespace | Pod | Service | EndpointSlice | ServiceAccount | Secret
    | CidrGroup | NetworkSet | PolicyTier | PolicyDocument
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Upsert:
    """The object exists with this content."""

    resource: Resource


@dataclass(frozen=True, slots=True)
class Delete:
    """The object does not exist."""

    key: ResourceKey


KINDS: Final[tuple[type[Resource], ...]] = get_args(Resource)
"""A source announces each of them. All policy kinds are one: PolicyDocument."""


@dataclass(frozen=True, slots=True)
class Synced:
    """The source has yielded all objects of this kind that exist at its start: all others do not exist."""

    kind: type[Resource]


Change = Upsert | Delete | Synced
