"""Simulates a cluster from resources: finds endpoints by name or address, and each node's view and policies.

The resources come from manifests or from an agent. Pods, nodes and Services without an address in the manifests get one
from a range that is not in use: 240.0.0.0/4, which is reserved (RFC 1112 section 4), or the discard prefix 100::/64
(RFC 6666) if all other addresses are IPv6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final, TypeVar

from l7proxy.cluster.state import ClusterState, NodeView
from l7proxy.errors import ConfigError
from l7proxy.flows import hubble_constants as hubble
from l7proxy.model.net import canonical, family_of
from l7proxy.model.resources import Change, EndpointSlice, Node, Pod, Resource, Service, Upsert
from l7proxy.policy.compile import compile_policies
from l7proxy.policy.decide import port_name
from l7proxy.policy.endpoints import ConnectionEnd, ConnectionPolicy, EndpointIndex
from l7proxy.policy.references import References
from l7proxy.policy.tables import LocalEndpoint
from l7proxy.setting_definitions import Settings
from l7proxy.settings import derived

R = TypeVar("R", bound=Resource)
NOBODYS: Final[Mapping[int, IPv4Network | IPv6Network]] = {4: IPv4Network("240.0.0.0/4"), 6: IPv6Network("100::/64")}


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection: a pod, a node, an external address, or a reserved identity without an address.

    `addresses`: all its addresses, unless the user gave a specific one; `address` is then the first of them.
    """

    name: str
    address: str = ""
    pod: Pod | None = None
    node: str | None = None
    identity: int | None = None
    addresses: tuple[str, ...] = ()

    def of_family(self, family: int) -> End | None:
        """The same end at an address of this IP version, or None. An end without a real address fits any version."""
        if not self.address or is_invented(self.address):
            return self
        found = (one for one in (self.address, *self.addresses) if family_of(one) == family)
        address = next(found, None)
        return replace(self, address=address) if address is not None else None


@dataclass(frozen=True, slots=True)
class Target:
    """The destination of the connection after Service DNAT."""

    end: End
    port: int


@dataclass(frozen=True)
class SimulatedNode:
    """One node's view and endpoints."""

    view: NodeView
    enforced: tuple[LocalEndpoint, ...] | None = None
    """The endpoints with the policies that the node's agent enforces, if known; else they are compiled."""

    @cached_property
    def _index(self) -> EndpointIndex:
        endpoints = self.enforced if self.enforced is not None else self._compiled()
        return EndpointIndex(endpoints, self.view.by_prefix)

    def _compiled(self) -> list[LocalEndpoint]:
        view = self.view
        policies = compile_policies(view.rules, view.endpoints, view.identities)
        return [LocalEndpoint(one.id, str(one), one.addresses, policies[one.id]) for one in view.endpoints]

    def end(self, end: End) -> ConnectionEnd:
        """`end` as this node sees it: a node is `host` on itself and `remote-node` on the others."""
        return ConnectionEnd(end.identity) if end.identity is not None else self._index.end(end.address)

    def between(self, source: End, destination: End, protocol: int, port: int) -> ConnectionPolicy:
        """The policy of a connection on this node."""
        return self._index.between(self.end(source), self.end(destination), protocol, port)


@dataclass
class Cluster:
    """The resources with their addresses, and each node's view of them, computed on demand."""

    resources: list[Resource]
    _cluster_state: ClusterState = field(default_factory=ClusterState)
    _views: dict[str, SimulatedNode] = field(default_factory=dict)

    @classmethod
    def of(cls, changes: Iterable[Change], settings: Settings | None = None) -> Cluster:
        """`settings`: those of the agents in the cluster."""
        resources = list(addressed([change.resource for change in changes if isinstance(change, Upsert)]))
        cluster = cls(resources, derived.empty_cluster(settings) if settings is not None else ClusterState())
        cluster._cluster_state.apply(Upsert(resource) for resource in resources)
        return cluster

    @classmethod
    def live(cls, cluster_state: ClusterState, view: NodeView, enforced: tuple[LocalEndpoint, ...]) -> Cluster:
        """The cluster of a running agent: its own node as enforced, the other nodes computed."""
        known = cluster_state.copy()
        views = {view.node: SimulatedNode(view, enforced)} if view.node is not None else {}
        return cls(list(known.known), known, views)

    def node(self, name: str) -> SimulatedNode:
        if name not in self._views:
            self._views[name] = SimulatedNode(self._cluster_state.view(name))
        return self._views[name]

    def home(self, end: End) -> SimulatedNode | None:
        """The node that enforces policy on this end; None if it is not an endpoint of any node.

        A running agent enforces policy on pods without a Pod object, too.
        """
        if end.pod is not None:
            return self.node(end.pod.node)
        enforced = (node for node in self._views.values() if node.enforced is not None)
        return next((node for node in enforced if node.end(end).endpoint is not None), None)

    @property
    def references(self) -> References:
        """The objects that policies may refer to."""
        return self._cluster_state.references

    @cached_property
    def everywhere(self) -> NodeView:
        """The view of all nodes, for questions about the manifests as a whole."""
        return self._cluster_state.view(None)

    def who(self, text: str) -> End:
        """Parse NS/POD, a node, an address or reserved:NAME. ConfigError if it does not exist."""
        if text.startswith("reserved:"):
            return _reserved(text)
        if "/" in text:
            return self._pod(text)
        try:
            return self._at(canonical(text))
        except ValueError:
            return self._node_named(text)

    def targets(self, text: str, port: str, protocol: int) -> list[Target]:
        """A Service gives all of its backends; a port name is the Service's, or the pod's without a Service.

        A Service address counts as the Service, on the Service's ports: policy is evaluated for its backends.
        """
        if text.startswith("svc:"):
            service = self._service(text)
            return self._backends(service, _port_of(service, port, protocol), protocol)
        frontend = self._frontend(text, port, protocol)
        if frontend is not None:
            return self._backends(*frontend, protocol, at=canonical(text))
        end = self.who(text)
        return [Target(end, _port_number(port, protocol, end))]

    def _all(self, kind: type[R]) -> Iterator[R]:
        return (one for one in self.resources if isinstance(one, kind))

    def _pod(self, text: str) -> End:
        namespace, _, name = text.partition("/")
        for pod in self._all(Pod):
            if (pod.namespace, pod.name) == (namespace, name):
                return self._end_of(pod)
        raise ConfigError(f"no pod {text} in the manifests")

    def _end_of(self, pod: Pod) -> End:
        name = f"{pod.namespace}/{pod.name}"
        if pod.host_network:
            return replace(self._node_named(pod.node), name=f"{name} (network of node {pod.node})")
        if pod.finished:
            raise ConfigError(f"pod {name} is in phase {pod.phase} and no longer has an address")
        return End(name, pod.addresses[0], pod=pod, addresses=pod.addresses)

    def _node_named(self, name: str) -> End:
        for node in self._all(Node):
            if node.name == name:
                return End(f"node {name}", node.addresses[0], node=name, addresses=node.addresses)
        raise ConfigError(
            f"{name!r} not found: not a node in the manifests and not an address; "
            "must be NS/POD, a node, an address, reserved:NAME or svc:NS/NAME"
        )

    def _at(self, address: str) -> End:
        for resource in self.resources:
            if isinstance(resource, Pod) and address in resource.addresses and not resource.finished:
                return replace(self._end_of(resource), address=address, addresses=())
            if isinstance(resource, Node) and address in resource.addresses:
                return End(f"node {resource.name}", address, node=resource.name)
        return End(address, address)

    def _service(self, text: str) -> Service:
        namespace, slash, name = text.removeprefix("svc:").partition("/")
        if not slash:
            raise ConfigError(f"{text}: expected svc:NAMESPACE/NAME")
        found = (one for one in self._all(Service) if (one.namespace, one.name) == (namespace, name))
        service = next(found, None)
        if service is None:
            raise ConfigError(f"no Service {namespace}/{name} in the manifests")
        if service.headless:
            raise ConfigError(f"Service {namespace}/{name} is headless: name one of its pods, --to NS/POD")
        return service

    def _frontend(self, text: str, port: str, protocol: int) -> tuple[Service, int] | None:
        """The Service with this address and port, and the port number."""
        try:
            address = canonical(text)
        except ValueError:
            return None
        found = ((one, _number_of(one, port, protocol)) for one in self._all(Service) if address in one.addresses)
        return next(((one, number) for one, number in found if number is not None), None)

    def _backends(self, service: Service, port: int, protocol: int, *, at: str = "") -> list[Target]:
        """The backends of a Service port, for this Service address or ("") for all."""
        behind = sorted(
            {
                (backend.address, backend.port)
                for one in self.everywhere.frontends
                if (one.namespace, one.service) == (service.namespace, service.name)
                if (one.port, one.protocol) == (port, protocol) and at in ("", one.address)
                for backend in one.backends
            }
        )
        if not behind:
            raise ConfigError(f"no endpoints for port {port} of Service {service.namespace}/{service.name}")
        return [Target(self._at(address), number) for address, number in behind]


def addressed(resources: Sequence[Resource]) -> Iterator[Resource]:
    """The resources; those that need an address and have none get one."""
    having = [resource for resource in resources if isinstance(resource, Pod | Node | Service | EndpointSlice)]
    taken = {address for resource in having for address in resource.addresses}
    family = 6 if taken and all(family_of(address) == 6 for address in taken) else 4
    free = (str(address) for address in NOBODYS[family].hosts() if str(address) not in taken)
    for resource in resources:
        match resource:
            case Pod(addresses=(), host_network=False, finished=False) | Node(addresses=()):
                yield replace(resource, addresses=(next(free),))
            case Service(addresses=(), headless=False):
                yield replace(resource, addresses=(next(free),))
            case _:
                yield resource


def is_invented(address: str) -> bool:
    return any(ip_address(address) in network for network in NOBODYS.values())


def _reserved(text: str) -> End:
    name = text.removeprefix("reserved:")
    if name not in hubble.RESERVED_NAMES:
        raise ConfigError(f"{text}: unknown reserved identity, must be one of {', '.join(hubble.RESERVED_NAMES)}")
    return End(text, identity=hubble.RESERVED_NAMES.index(name))


def _port_number(port: str, protocol: int, end: End) -> int:
    if port.isascii() and port.isdigit():
        return int(port)
    known = end.pod.named_ports if end.pod is not None else frozenset()
    for name, of_protocol, number in known:
        if (name, of_protocol) == (port, protocol):
            return number
    raise ConfigError(f"{end.name} has no port named {port!r} of that protocol")


def _number_of(service: Service, port: str, protocol: int) -> int | None:
    wanted = (one.port for one in service.ports if one.protocol == protocol and port in (one.name, str(one.port)))
    return next(wanted, None)


def _port_of(service: Service, port: str, protocol: int) -> int:
    number = _number_of(service, port, protocol)
    if number is None:
        name = f"{service.namespace}/{service.name}"
        known = ", ".join(port_name(one.protocol, one.port) for one in service.ports) or "none"
        raise ConfigError(f"Service {name} has no port {port} of that protocol (ports: {known})")
    return number
