"""Rules × endpoints × identities → one EndpointPolicy per endpoint. Pure: any order of equal inputs, equal tables.

Peers become identity numbers, port names become numbers, entities and CIDRs are selectors like others (Cilium
semantics). What resolves to nobody or to no port gives no entry, but still puts its direction into default deny.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from l7proxy.model.endpoint import Endpoint
from l7proxy.model.identity import HOST, WORLD, Identity, NamedPort
from l7proxy.model.labels import EVERYTHING, RESERVED, LabelSet, Selector
from l7proxy.model.net import Network
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.rules import CidrPeer, PortMatch, Rule, SelectorPeer
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry

BUILT_IN: Final = "built-in"
"""The kind of the two references below: what no document wrote."""
ALLOW_LOCALHOST: Final = RuleRef(BUILT_IN, "", "allow-localhost")
"""Ingress from this node itself: kubelet's probes. Any explicit deny beats it."""
NO_DEFAULT_DENY: Final = RuleRef(BUILT_IN, "", "no-default-deny")
"""All that the rules of a direction without default deny do not speak of."""

Peers = tuple[int, ...] | None


def compile_policies(
    rules: Iterable[Rule], endpoints: Iterable[Endpoint], identities: Mapping[int, Identity]
) -> dict[int, EndpointPolicy]:
    """The policy of every endpoint, by its id, ascending."""
    subjects: dict[Selector, list[Rule]] = {}
    for rule in rules:
        subjects.setdefault(rule.subject, []).append(rule)
    resolver = _Resolver(identities)
    known: dict[tuple[LabelSet, frozenset[NamedPort]], EndpointPolicy] = {}
    policies: dict[int, EndpointPolicy] = {}
    for endpoint in sorted(endpoints, key=lambda each: each.id):
        key = (endpoint.labels, endpoint.named_ports)  # all that policy knows of it: replicas share one answer
        if key not in known:
            known[key] = _endpoint(endpoint, subjects, resolver)
        policies[endpoint.id] = replace(known[key], endpoint=endpoint.id)
    return policies


def cidrs_of(rules: Iterable[Rule]) -> frozenset[Network]:
    """Every prefix that rules name, excepts included: each needs an identity of its own to be told apart."""
    return frozenset(
        network
        for rule in rules
        for peer in rule.peers or ()
        if isinstance(peer, CidrPeer)
        for network in (peer.network, *peer.excepts)
    )


def _endpoint(endpoint: Endpoint, subjects: Mapping[Selector, list[Rule]], resolver: _Resolver) -> EndpointPolicy:
    own = [rule for subject, rules in subjects.items() if subject.matches(endpoint.labels) for rule in rules]
    ingress = [rule for rule in own if rule.direction is Direction.INGRESS]
    egress = [rule for rule in own if rule.direction is Direction.EGRESS]
    return EndpointPolicy(
        endpoint.id,
        _direction(Direction.INGRESS, ingress, endpoint, resolver),
        _direction(Direction.EGRESS, egress, endpoint, resolver),
    )


def _direction(
    direction: Direction, rules: list[Rule], endpoint: Endpoint, resolver: _Resolver
) -> DirectionPolicy | None:
    entries = {entry for rule in rules for entry in _entries(rule, endpoint, resolver)}
    denied_by = sorted({_policy_ref(rule.ref) for rule in rules if rule.default_deny}, key=_ref_key)
    if not denied_by and not entries:
        return None
    last: list[Entry] = []
    if denied_by and direction is Direction.INGRESS:
        last.append(Entry(Action.ALLOW, ALLOW_LOCALHOST, peers=(HOST,)))
    if not denied_by:
        last.append(Entry(Action.ALLOW, NO_DEFAULT_DENY))
    return DirectionPolicy((*sorted(entries, key=_entry_key), *last), tuple(denied_by))


def _entries(rule: Rule, endpoint: Endpoint, resolver: _Resolver) -> Iterator[Entry]:
    peers = resolver.peers(rule)
    if peers == ():
        return
    action = Action.REDIRECT if rule.http and rule.action is Action.ALLOW else rule.action
    http = rule.http if action is Action.REDIRECT else None
    cell = Entry(action, rule.ref, peers, http=http, refusal=rule.refusal)
    if rule.ports is None:
        yield cell
        return
    for match in rule.ports:
        if match.name:
            yield from _named(cell, match, rule.direction, endpoint, resolver)
        else:
            for protocol in match.protocols:
                yield replace(cell, protocol=protocol, first=match.first, last=match.last)


def _named(
    cell: Entry, match: PortMatch, direction: Direction, endpoint: Endpoint, resolver: _Resolver
) -> Iterator[Entry]:
    """Ingress: the name is the endpoint's own. Egress: each destination pod's, so one name may be many numbers."""
    if direction is Direction.INGRESS:
        for protocol, number in _numbers(match, endpoint.named_ports):
            yield replace(cell, protocol=protocol, first=number, last=number)
        return
    for (protocol, number), ids in resolver.by_port(match).items():
        peers = ids if cell.peers is None else tuple(sorted(set(ids).intersection(cell.peers)))
        if peers:
            yield replace(cell, peers=peers, protocol=protocol, first=number, last=number)


def _numbers(match: PortMatch, named_ports: Iterable[NamedPort]) -> Iterator[tuple[int, int]]:
    for name, protocol, number in named_ports:
        if name == match.name and protocol in match.protocols:
            yield protocol, number


class _Resolver:
    """Peers → ascending identity numbers, each selector once per compilation."""

    def __init__(self, identities: Mapping[int, Identity]) -> None:
        self._identities = [identities[number] for number in sorted(identities)]
        self._outside = {version: _by_address(self._identities, version) for version in (4, 6)}
        self._peers: dict[SelectorPeer | CidrPeer, Peers] = {}
        self._ports: dict[PortMatch, dict[tuple[int, int], tuple[int, ...]]] = {}

    def peers(self, rule: Rule) -> Peers:
        """None is everyone, () is nobody."""
        if rule.peers is None:
            return None
        union: set[int] = set()
        for peer in rule.peers:
            if peer not in self._peers:
                self._peers[peer] = self._selected(peer) if isinstance(peer, SelectorPeer) else self._in_cidr(peer)
            ids = self._peers[peer]
            if ids is None:
                return None
            union.update(ids)
        return tuple(sorted(union))

    def by_port(self, match: PortMatch) -> dict[tuple[int, int], tuple[int, ...]]:
        """(protocol, number) → identities under which `match.name` means that."""
        if match not in self._ports:
            found: dict[tuple[int, int], list[int]] = {}
            for identity in self._identities:
                for key in set(_numbers(match, identity.named_ports)):
                    found.setdefault(key, []).append(identity.id)
            self._ports[match] = {key: tuple(ids) for key, ids in found.items()}
        return self._ports[match]

    def _selected(self, peer: SelectorPeer) -> Peers:
        if peer.selector == EVERYTHING:
            return None
        return tuple(each.id for each in self._identities if peer.selector.matches(each.labels))

    def _in_cidr(self, peer: CidrPeer) -> Peers:
        found = self._within(peer.network).difference(*(self._within(hole) for hole in peer.excepts))
        return tuple(sorted(found))

    def _within(self, network: Network) -> set[int]:
        """Identities whose whole prefix lies in `network`: a run of the sorted table, less the wider ones in it."""
        starts, found = self._outside[network.version]
        low = bisect_left(starts, int(network.network_address))
        high = bisect_right(starts, int(network.broadcast_address))
        return {number for length, number in found[low:high] if length >= network.prefixlen}


def _by_address(identities: Iterable[Identity], version: int) -> tuple[list[int], list[tuple[int, int]]]:
    """The outside by first address: all starts, and (prefix length, identity) beside each.

    Only what has a `world` label is outside: a CIDR never matches a pod or a node. The single-stack world has no prefix
    of its own: it is the rest of either family.
    """
    rows = [
        (int(each.cidr.network_address), each.cidr.prefixlen, each.id)
        for each in identities
        if each.cidr is not None and each.cidr.version == version and _is_world(each)
    ]
    rows += [(0, 0, each.id) for each in identities if each.id == WORLD and each.cidr is None]
    rows.sort()
    return [start for start, _, _ in rows], [(length, number) for _, length, number in rows]


def _is_world(identity: Identity) -> bool:
    return any(label.source == RESERVED and label.key.startswith("world") for label in identity.labels.labels)


def _policy_ref(ref: RuleRef) -> RuleRef:
    return replace(ref, rule="", line=0)


# Canonical order: keys spell out every field that tells two values apart.


def _ref_key(ref: RuleRef) -> tuple[object, ...]:
    numbered = tuple(int(part) if part.isdecimal() else part for part in _NUMBERS.split(ref.rule))
    return (ref.kind, ref.namespace, ref.name, numbered, ref.file, ref.line)


def _entry_key(entry: Entry) -> tuple[object, ...]:
    """Strongest action first, then by document, so that what is shown first is what is named first."""
    return (
        -entry.action,
        _ref_key(entry.ref),
        -1 if entry.protocol is None else entry.protocol,
        entry.first,
        entry.last,
        entry.peers is not None,
        entry.peers or (),
        repr(entry.http),
        entry.refusal,
    )


_NUMBERS: Final = re.compile(r"([0-9]+)")
