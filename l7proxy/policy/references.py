"""What rules name that only the rest of the cluster tells: Services and CIDR groups, put in the names' place.

Pure: rules and the facts they may name in, rules with peers that compile knows out. A name that nobody has means
nobody, never everybody, and its rule still puts its direction into default deny.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import ip_network
from typing import Final

from l7proxy.model.facts import CidrGroup, EndpointSlice, Service
from l7proxy.model.labels import CIDR_GROUP, K8S, NAMESPACE_KEY, Label, LabelSet, Operator, Requirement, Selector
from l7proxy.model.ref import RuleRef
from l7proxy.policy.rules import AnyPeer, CidrGroupPeer, CidrPeer, EveryPeer, Peer, Rule, SelectorPeer, ServicePeer

_PLAIN: Final = (SelectorPeer, CidrPeer)
"""What most rules are made of: no name in them."""


@dataclass(frozen=True)
class References:
    """What there is to be named, as the sources tell it."""

    services: tuple[Service, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()
    cidr_groups: tuple[CidrGroup, ...] = ()

    @cached_property
    def _behind(self) -> Mapping[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], set[str]] = {}
        for piece in self.slices:
            found.setdefault((piece.namespace, piece.service), set()).update(piece.addresses)
        return {service: sorted(addresses) for service, addresses in found.items()}

    def of_services(self, peer: ServicePeer) -> Iterator[Peer]:
        """A Service that selects pods means those, by their labels; any other means addresses outside."""
        for service in self.services:
            if peer.namespace not in ("", service.namespace) or peer.name not in ("", service.name):
                continue
            if not peer.selector.matches(_labels(K8S, service.labels)):
                continue
            if service.selector:
                yield _pods(service)
            else:
                addresses = self._behind.get((service.namespace, service.name), ())
                yield from (CidrPeer(ip_network(address), reach=peer.reach) for address in addresses)

    def of_groups(self, peer: CidrGroupPeer) -> Iterator[Peer]:
        for group in self.cidr_groups:
            if peer.name in ("", group.name) and peer.selector.matches(_labels(CIDR_GROUP, group.labels)):
                yield from (CidrPeer(ip_network(text), peer.excepts, peer.reach) for text in group.networks)


def resolve(rules: Iterable[Rule], references: References) -> tuple[Rule, ...]:
    """The rules, each name in them replaced by whom it means now."""
    known: dict[tuple[Peer, ...], tuple[Peer, ...]] = {}

    def resolved(rule: Rule) -> Rule:
        if not rule.peers or all(isinstance(peer, _PLAIN) for peer in rule.peers):
            return rule
        if rule.peers not in known:
            known[rule.peers] = tuple(dict.fromkeys(_all(rule.peers, references)))
        return replace(rule, peers=known[rule.peers])

    return tuple(resolved(rule) for rule in rules)


def unknown(rules: Iterable[Rule], references: References) -> Iterator[tuple[RuleRef, Peer]]:
    """The names that mean nobody, each with the rule it stands in."""
    for rule in rules:
        for peer in _names(rule.peers or ()):
            if not any(True for _ in _all((peer,), references)):
                yield rule.ref, peer


def _names(peers: Iterable[Peer]) -> Iterator[Peer]:
    for peer in peers:
        match peer:
            case ServicePeer() | CidrGroupPeer():
                yield peer
            case EveryPeer(all_of, none_of):
                yield from _names((*all_of, *none_of))
            case AnyPeer(any_of):
                yield from _names(any_of)
            case _:
                pass


def _all(peers: Iterable[Peer], references: References) -> Iterator[Peer]:
    for peer in peers:
        match peer:
            case ServicePeer():
                yield from references.of_services(peer)
            case CidrGroupPeer():
                yield from references.of_groups(peer)
            case EveryPeer(all_of, none_of):
                yield EveryPeer(_each(all_of, references), _each(none_of, references))
            case AnyPeer(any_of):
                yield AnyPeer(tuple(_all(any_of, references)))
            case _:
                yield peer


def _each(peers: Iterable[Peer], references: References) -> tuple[Peer, ...]:
    """One for one: in a conjunction a name that means several, or nobody, stays one term."""
    found = (tuple(_all((peer,), references)) for peer in peers)
    return tuple(some[0] if len(some) == 1 else AnyPeer(some) for some in found)


def _pods(service: Service) -> SelectorPeer:
    wanted = sorted({**service.selector, NAMESPACE_KEY: service.namespace}.items())
    return SelectorPeer(Selector(tuple(Requirement(K8S, key, Operator.IN, (value,)) for key, value in wanted)))


def _labels(source: str, labels: Mapping[str, str]) -> LabelSet:
    return LabelSet.of(Label(source, key, value) for key, value in labels.items())
