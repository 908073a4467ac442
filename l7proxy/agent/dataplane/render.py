"""Renders a view, its compiled policies and the pod interfaces into what workers and kernel enforce. Pure.

The workers get all policies in full; the kernel gets the L3/L4 verdicts, and which traffic to redirect to a worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Final

import msgspec

import tproxy_rules.desired as kernel
from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.agent.dataplane.unknown_pods import UnknownPod, unknown_pods
from l7proxy.cluster.secrets import headers_of
from l7proxy.cluster.state import NodeView
from l7proxy.gate.options import DEFAULT_OPTIONS, HttpOptions
from l7proxy.link.messages import PolicySnapshot
from l7proxy.model.cache import IdentityMemo
from l7proxy.model.endpoint import Endpoint, Frontend
from l7proxy.model.net import PrefixTable, single_text
from l7proxy.model.verdict import Action
from l7proxy.model.versioned import VersionedMap, changes
from l7proxy.policy.compile import NODE_PROBES
from l7proxy.policy.l7 import kind_of
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry, LocalEndpoint, Stage, TierPolicy
from tproxy_rules.simplify import simplified

Both = tuple[kernel.Table | None, kernel.Table | None]
"""(ingress, egress) of one endpoint."""
ANY_PROTOCOL: Final = -1
VERDICTS: Final = {
    Action.PASS: kernel.Verdict.PASS,
    Action.ALLOW: kernel.Verdict.ALLOW,
    Action.REDIRECT: kernel.Verdict.STEER,
    Action.DENY: kernel.Verdict.DENY,
}


@dataclass(frozen=True)
class DesiredState:
    """One revision: the workers' snapshot, the kernel's desired state, and the unknown pods in both. `steers`: some
    traffic is redirected to a worker."""

    workers: PolicySnapshot
    kernel: kernel.Desired
    unknown: tuple[UnknownPod, ...] = ()

    @property
    def steers(self) -> bool:
        return any(
            table is not None and table.steers for one in self.kernel.endpoints for table in (one.ingress, one.egress)
        )

    def equals(self, other: DesiredState | None) -> bool:
        """Whether both are equal, apart from the revision."""
        return other is not None and self == other.at(self.workers.revision)

    def at(self, revision: int) -> DesiredState:
        return replace(self, workers=msgspec.structs.replace(self.workers, revision=revision))


def render(
    view: NodeView,
    policies: Mapping[int, EndpointPolicy],
    interfaces: PodInterfaces,
    *,
    settings: kernel.Settings,
    resolve_services: bool,
    http: HttpOptions = DEFAULT_OPTIONS,
    audit: bool = False,
    known: Tables | None = None,
) -> DesiredState:
    """The revision is 0; the publisher sets it. `resolve_services`: the backend redirects before Service DNAT. `audit`:
    the node is in audit mode.

    `known` caches the kernel tables of policies that are the same objects as last time.
    """
    known = Tables() if known is None else known
    unknown = unknown_pods(
        view.endpoints, interfaces, node=view.node or "", node_addresses=view.node_addresses, audit=audit
    )
    tables = known.of({**policies, **{one.id: one.policy for one in unknown}})
    ports = ports_of(view.endpoints, interfaces)
    endpoints = [
        kernel.Endpoint(one.id, tuple(sorted(one.addresses)), ports.get(one.id), *tables[one.id])
        for one in view.endpoints
    ]
    endpoints += (kernel.Endpoint(one.id, one.addresses, one.port, *tables[one.id]) for one in unknown)
    held = () if audit else _held(view.pod_cidrs, view.endpoints)
    desired = kernel.Desired(
        settings=settings,
        identities=known.prefixes(view.by_prefix, view.only_named if held else frozenset()),
        endpoints=tuple(sorted(filter(_concerns_kernel, endpoints), key=lambda one: (one.id, one.addresses))),
        bridges=interfaces.bridges,
        other_ports=interfaces.other_ports,
        held=held,
        frontends=_frontends(view, policies) if resolve_services else (),
    )
    workers = PolicySnapshot(
        revision=0,
        endpoints=(
            *(LocalEndpoint(one.id, str(one), one.addresses, policies[one.id]) for one in view.endpoints),
            *(LocalEndpoint(one.id, str(one), one.addresses, one.policy) for one in unknown),
        ),
        identities=view.by_prefix,
        frontends=view.frontends if resolve_services else (),
        node_addresses=view.node_addresses,
        http=replace(http, secret_headers=frozenset(name.encode() for name in headers_of(view.rules))),
    )
    return DesiredState(workers, desired, unknown)


class Tables:
    """Caches the kernel tables of compiled policies, as long as a DirectionPolicy is the same object.

    Replicas share a DirectionPolicy, and so a table.
    """

    def __init__(self) -> None:
        self._table = IdentityMemo(_table)
        self._by_prefix: Mapping[str, int] = {}
        self._without: frozenset[str] = frozenset()
        self._left: VersionedMap[str, int] = VersionedMap()

    def prefixes(self, by_prefix: VersionedMap[str, int], addresses: frozenset[str]) -> kernel.Prefixes:
        """Without these addresses: what a policy names is not known to be a pod's, and must not open a held address."""
        if not addresses:
            self._by_prefix, self._without, self._left = {}, frozenset(), VersionedMap()
            return by_prefix.pairs()
        gone = frozenset(map(single_text, addresses))
        changed = {*changes(self._by_prefix, by_prefix), *(gone ^ self._without)}
        self._by_prefix, self._without = by_prefix, gone
        self._left = self._left.updated(changed, lambda prefix: None if prefix in gone else by_prefix.get(prefix))
        return self._left.pairs()

    def of(self, policies: Mapping[int, EndpointPolicy]) -> Mapping[int, Both]:
        found = {number: (self._one(policy.ingress), self._one(policy.egress)) for number, policy in policies.items()}
        self._table.turn()
        return found

    def _one(self, policy: DirectionPolicy | None) -> kernel.Table | None:
        return None if policy is None else self._table(policy)


def _held(pod_cidrs: Iterable[str], endpoints: Iterable[Endpoint]) -> tuple[str, ...]:
    """The pod CIDRs of this node that hold the addresses of its pods, of each IP version all or none.

    An IPAM that does not follow the Node (Calico's) may give addresses in them to other nodes, also to their tunnels,
    which no object names: then the node's own pods have addresses outside, too.
    """
    cidrs = [ip_network(cidr) for cidr in pod_cidrs]
    outside: dict[int, set[bool]] = {4: set(), 6: set()}
    for address in (ip_address(text) for one in endpoints for text in one.addresses):
        outside[address.version].add(not any(address in cidr for cidr in cidrs))
    return tuple(sorted(str(cidr) for cidr in cidrs if outside[cidr.version] == {False}))


def ports_of(endpoints: Iterable[Endpoint], interfaces: PodInterfaces) -> Mapping[int, kernel.Port]:
    """Endpoint → port, only for interfaces of a single endpoint: two pods on one interface could spoof each other."""
    found = {endpoint.id: _ports(endpoint, interfaces) for endpoint in endpoints}
    users = Counter(name for ports in found.values() for name in {port.interface for port in ports})
    alone = ((number, {port for port in ports if users[port.interface] == 1}) for number, ports in found.items())
    return {number: next(iter(ports)) for number, ports in alone if len(ports) == 1}


def _ports(endpoint: Endpoint, interfaces: PodInterfaces) -> set[kernel.Port]:
    """The ports of one endpoint's addresses. Of several interfaces with one address, it is the one that the CNI made
    for this pod: another may be left over from the address's last owner."""
    known, disputed = interfaces.ports, interfaces.disputed
    found = (known.get(one) or disputed.get(one, {}).get(str(endpoint)) for one in endpoint.addresses)
    return {port for port in found if port is not None}


def _concerns_kernel(endpoint: kernel.Endpoint) -> bool:
    """Not a pod that has neither a policy nor a known interface."""
    return any(part is not None for part in (endpoint.port, endpoint.ingress, endpoint.egress))


def _table(policy: DirectionPolicy) -> kernel.Table:
    return simplified(kernel.Table(tuple(_tier(tier) for tier in policy.tiers), policy.governed))


def _tier(tier: TierPolicy) -> kernel.Tier:
    stages = (stage for given in tier.stages for stage in _stages(given))
    return kernel.Tier(tuple(tuple(sorted(stage)) for stage in stages if stage), closed=bool(tier.denied_by))


def _stages(given: Stage) -> Iterator[set[kernel.Entry]]:
    """One stage of a policy as kernel stages. Audited denials are left out, since their traffic has to pass.

    Only the protocol that carries a kind of L7 rules is redirected. Others that the rules cover cannot be inspected,
    so they are denied, with the precedence of the redirect: after DENY and ALLOW entries of the same stage, before its
    PASS entries.
    """
    enforced = [entry for entry in given if not (entry.audit and entry.action is Action.DENY)]
    unjudged = [
        entry for entry in enforced if entry.action is Action.REDIRECT and entry.protocol != kind_of(entry.l7).protocol
    ]
    weak = [entry for entry in enforced if unjudged and entry.action is Action.PASS]
    yield {
        _entry(entry) for entry in enforced if entry not in weak and (entry.protocol is None or entry not in unjudged)
    }
    yield {replace(_entry(entry), verdict=kernel.Verdict.DENY, protocol=_number(entry.protocol)) for entry in unjudged}
    yield {_entry(entry) for entry in weak}


def _entry(entry: Entry) -> kernel.Entry:
    """A redirect of any protocol becomes a redirect of all ports of the protocol that carries its kind."""
    steered_any = entry.action is Action.REDIRECT and entry.protocol is None
    first, last = (entry.first, entry.last) if entry.protocol is not None else (0, 65535)
    return kernel.Entry(
        verdict=VERDICTS[entry.action],
        protocol=_number(kind_of(entry.l7).protocol if steered_any else entry.protocol),
        first=first,
        last=last,
        any_peer=entry.peers is None,
        peers=entry.peers or (),
    )


def _number(protocol: int | None) -> int:
    return ANY_PROTOCOL if protocol is None else int(protocol)


def _frontends(view: NodeView, policies: Mapping[int, EndpointPolicy]) -> tuple[kernel.Frontend, ...]:
    """Every Service address; `steer` is set if traffic to one of its backends may be redirected to a worker."""
    identities = PrefixTable(view.by_prefix)
    ingress = {address: policies[endpoint.id].ingress for endpoint in view.endpoints for address in endpoint.addresses}
    leaving = {
        entry
        for policy in policies.values()
        if policy.egress is not None
        for entry in policy.egress.entries
        if entry.action is Action.REDIRECT
    }

    @cache
    def redirected(address: str, protocol: int, port: int) -> bool:
        arriving = ingress.get(address)
        if arriving is not None and any(_redirects(entry, None, protocol, port) for entry in arriving.entries):
            return True
        identity = identities.get(address) or 0
        return any(_redirects(entry, identity, protocol, port) for entry in leaving)

    def steer(frontend: Frontend) -> bool:
        return any(redirected(one.address, frontend.protocol, one.port) for one in frontend.backends)

    found = {(one.address, one.protocol, one.port): steer(one) for one in view.frontends}
    return tuple(kernel.Frontend(*key, steer) for key, steer in sorted(found.items()))


def _redirects(entry: Entry, identity: int | None, protocol: int, port: int) -> bool:
    """Whether the entry redirects this port to a worker, for this peer or (None) for at least one peer.

    Entries for probes do not count: the kubelet connects to pods, not to Services.
    """
    if entry.action is not Action.REDIRECT or kind_of(entry.l7).protocol != protocol or entry.ref == NODE_PROBES:
        return False
    if identity is None:
        return entry.protocol in (None, protocol) and entry.first <= port <= entry.last
    return entry.covers(identity, protocol, port)
