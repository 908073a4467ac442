"""Resolves references of rules to other objects: Services, CIDR groups, network sets, nodes, Calico's tiers.

Pure: takes rules and the objects they may name, returns rules with peers that compile supports. A name that does not
exist matches no peer, never every peer, and its rule still puts its direction into default deny. A rule in a tier that
does not exist has no place in the order: it denies all traffic that it could cover.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import ip_network
from typing import Final

from l7proxy.model.labels import (
    CIDR_GROUP,
    K8S,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    NODE,
    OWN,
    Label,
    LabelSet,
    Operator,
    Requirement,
    Selector,
)
from l7proxy.model.net import single
from l7proxy.model.ref import RuleRef
from l7proxy.model.resources import CidrGroup, EndpointSlice, Namespace, NetworkSet, Node, PolicyTier, Service
from l7proxy.model.verdict import Action
from l7proxy.policy.rules import (
    EVERYONE_BUT_THE_HOST,
    AnyPeer,
    CidrGroupPeer,
    CidrPeer,
    EveryPeer,
    NetworkSetPeer,
    NodePeer,
    Peer,
    PortMatch,
    Reach,
    Rule,
    SelectorPeer,
    ServicePeer,
    ServicePortPeer,
    leaves,
)
from l7proxy.policy.tiers import UNPLACED, Tier

METADATA_NAME: Final = "kubernetes.io/metadata.name"
_EVERYWHERE: Final = ("0.0.0.0/0", "::/0")
NamePeer = ServicePeer | CidrGroupPeer | NodePeer | ServicePortPeer
"""Peers that are reported when no object has the name."""
_PLAIN: Final = (SelectorPeer, CidrPeer)
"""Peers of most rules: they contain no references."""


@dataclass(frozen=True)
class References:
    """The objects that rules may name, as the sources read them."""

    services: tuple[Service, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()
    cidr_groups: tuple[CidrGroup, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    nodes: tuple[Node, ...] = ()
    network_sets: tuple[NetworkSet, ...] = ()
    tiers: tuple[PolicyTier, ...] = ()

    @cached_property
    def _behind(self) -> Mapping[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], set[str]] = {}
        for piece in self.slices:
            found.setdefault((piece.namespace, piece.service), set()).update(piece.addresses)
        return {service: sorted(addresses) for service, addresses in found.items()}

    def of_services(self, peer: ServicePeer) -> Iterator[Peer]:
        """A Service with a selector means its pods, by their labels; any other means addresses outside."""
        for service, labels in self._labelled_services.get(peer.name, ()):
            if peer.namespace not in ("", service.namespace) or not peer.selector.matches(labels):
                continue
            if service.selector:
                yield _pods(service)
            else:
                addresses = self._behind.get((service.namespace, service.name), ())
                yield from (CidrPeer(single(address), reach=peer.reach) for address in addresses)

    @cached_property
    def _labelled_services(self) -> Mapping[str, list[tuple[Service, LabelSet]]]:
        """By name; all of them under ""."""
        found: dict[str, list[tuple[Service, LabelSet]]] = {}
        for service in self.services:
            labelled = service, _labels(K8S, service.labels)
            found.setdefault(service.name, []).append(labelled)
            found.setdefault("", []).append(labelled)
        return found

    def of_groups(self, peer: CidrGroupPeer, *, deny: bool = False) -> Iterator[Peer]:
        """An unreadable group matches no peer in allow rules, and every address outside in `deny` rules."""
        for group, labels in self._labelled_groups:
            if peer.name in ("", group.name) and (group.unread or peer.selector.matches(labels)):
                networks = group.networks if not group.unread else _EVERYWHERE if deny else ()
                yield from (CidrPeer(ip_network(text), peer.excepts, peer.reach) for text in networks)

    @cached_property
    def _labelled_groups(self) -> list[tuple[CidrGroup, LabelSet]]:
        return [(group, _labels(CIDR_GROUP, group.labels)) for group in self.cidr_groups]

    def of_network_sets(self, peer: NetworkSetPeer) -> Iterator[Peer]:
        for one, labels in self._labelled_sets:
            if peer.selector.matches(labels):
                yield from (CidrPeer(ip_network(text), reach=Reach.ANYWHERE) for text in one.networks)

    @cached_property
    def _labelled_sets(self) -> list[tuple[NetworkSet, LabelSet]]:
        """A network set has its own labels, and inherits those of its namespace like a pod."""
        spaces = {space.name: space.labels for space in self.namespaces}
        found = []
        for one in self.network_sets:
            labels = {Label(OWN, key, value) for key, value in one.labels.items()}
            if one.namespace:
                labels.add(Label(K8S, NAMESPACE_KEY, one.namespace))
                inherited = {**spaces.get(one.namespace, {}), METADATA_NAME: one.namespace}
                labels |= {Label(K8S, NAMESPACE_LABELS_PREFIX + key, value) for key, value in inherited.items()}
            found.append((one, LabelSet.of(labels)))
        return found

    def of_nodes(self, peer: NodePeer) -> Iterator[Peer]:
        for node in self.nodes:
            if peer.selector.matches(_labels(NODE, node.labels)):
                yield from (CidrPeer(single(address), reach=Reach.NODES) for address in node.addresses)

    def of_service_ports(self, peer: ServicePortPeer) -> Iterator[tuple[tuple[Peer, ...], tuple[PortMatch, ...]]]:
        """(peers, ports) of each EndpointSlice of the Service."""
        for piece in self.slices:
            if (piece.namespace, piece.service) != (peer.namespace, peer.name) or not piece.addresses:
                continue
            if piece.ports or not peer.on_ports:
                who = tuple(CidrPeer(single(address), reach=Reach.ANYWHERE) for address in piece.addresses)
                yield who, tuple(PortMatch(frozenset((one.protocol,)), one.port, one.port) for one in piece.ports)

    @cached_property
    def placed(self) -> Mapping[str, PolicyTier]:
        return {tier.name: tier for tier in self.tiers}


def resolve(rules: Iterable[Rule], references: References) -> tuple[Rule, ...]:
    """The rules, with each reference replaced by the peers that it currently means."""
    known: dict[tuple[tuple[Peer, ...], bool], tuple[Peer, ...]] = {}

    def resolved(rule: Rule) -> Rule:
        if not rule.peers or all(isinstance(peer, _PLAIN) for peer in rule.peers):
            return rule
        asked = rule.peers, rule.action is Action.DENY
        if asked not in known:
            known[asked] = tuple(dict.fromkeys(_all(*asked, references)))
        return replace(rule, peers=known[asked])

    return tuple(resolved(each) for rule in rules for each in _by_ports(_placed(rule, references), references))


def _by_ports(rule: Rule, references: References) -> Iterator[Rule]:
    """The ports of a Service may differ between EndpointSlices: one rule for each. Without any, no peer matches."""
    match rule.peers:
        case (ServicePortPeer() as peer,):
            parts = list(references.of_service_ports(peer))
            for who, what in parts or [((), ())]:
                yield replace(rule, peers=who, ports=_served(rule, what) if peer.on_ports else rule.ports)
        case _:
            yield rule


def _served(rule: Rule, ports: tuple[PortMatch, ...]) -> tuple[PortMatch, ...]:
    """The ports of a Service with the protocols that the rule names."""
    if rule.ports is None:
        return ports
    named = frozenset(number for match in rule.ports for number in match.protocols)
    return tuple(replace(match, protocols=match.protocols & named) for match in ports if match.protocols & named)


def _placed(rule: Rule, references: References) -> Rule:
    tier = rule.level.tier
    if tier.order != UNPLACED:
        return rule
    found = references.placed.get(tier.name)
    if found is None:
        peers = EVERYONE_BUT_THE_HOST[rule.direction]
        return replace(rule, action=Action.DENY, peers=peers, ports=None, l7=None, refusal=_no_tier(tier))
    level = replace(rule.level, tier=Tier(found.order, found.name))
    return replace(rule, level=level, default_deny=rule.default_deny and not found.passes)


def _no_tier(tier: Tier) -> str:
    return f"Tier {tier.name} does not exist"


def unknown(rules: Iterable[Rule], references: References) -> Iterator[tuple[RuleRef, str]]:
    """(rule, name) for each name that matches no peer."""
    for rule in rules:
        for peer in leaves(rule.peers or ()):
            if isinstance(peer, NamePeer) and not _means(peer, references):
                yield rule.ref, _called(peer)


def _means(peer: NamePeer, references: References) -> bool:
    """True for a name that matches a peer."""
    if isinstance(peer, ServicePortPeer):
        return any(True for _ in references.of_service_ports(peer))
    return any(True for _ in _all((peer,), False, references))


def _called(peer: NamePeer) -> str:
    match peer:
        case ServicePortPeer(namespace, name):
            return f"Service {namespace}/{name} with endpoints"
        case ServicePeer(namespace, name) if name:
            return f"Service {namespace}/{name}" if namespace else f"Service {name} in any namespace"
        case ServicePeer(namespace):
            return f"Service in {namespace or 'any namespace'} with labels {peer.selector}"
        case CidrGroupPeer(name):
            return f"CIDR group {name}" if name else f"CIDR group with labels {peer.selector}"
        case NodePeer():
            return f"node with labels {peer.selector}"


def without_tier(rules: Iterable[Rule], references: References) -> Iterator[tuple[RuleRef, str]]:
    """The rules that deny because their tier does not exist, with the reason."""
    for rule in rules:
        tier = rule.level.tier
        if tier.order == UNPLACED and tier.name not in references.placed:
            yield rule.ref, _no_tier(tier)


def _all(peers: Iterable[Peer], deny: bool, references: References) -> Iterator[Peer]:
    for peer in peers:
        match peer:
            case ServicePeer():
                yield from references.of_services(peer)
            case CidrGroupPeer():
                yield from references.of_groups(peer, deny=deny)
            case NetworkSetPeer():
                yield from references.of_network_sets(peer)
            case NodePeer():
                yield from references.of_nodes(peer)
            case EveryPeer(all_of, none_of):
                yield EveryPeer(_each(all_of, deny, references), _each(none_of, not deny, references))
            case AnyPeer(any_of):
                yield AnyPeer(tuple(_all(any_of, deny, references)))
            case _:
                yield peer


def _each(peers: Iterable[Peer], deny: bool, references: References) -> tuple[Peer, ...]:
    """One peer for each: in a conjunction a name stays one term, also if it means several peers or none."""
    found = (tuple(_all((peer,), deny, references)) for peer in peers)
    return tuple(some[0] if len(some) == 1 else AnyPeer(some) for some in found)


def _pods(service: Service) -> SelectorPeer:
    wanted = sorted({**service.selector, NAMESPACE_KEY: service.namespace}.items())
    return SelectorPeer(Selector(tuple(Requirement(K8S, key, Operator.IN, (value,)) for key, value in wanted)))


def _labels(source: str, labels: Mapping[str, str]) -> LabelSet:
    return LabelSet.of(Label(source, key, value) for key, value in labels.items())
