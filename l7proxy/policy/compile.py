"""Rules × endpoints × identities → one EndpointPolicy per endpoint. Pure: any order of equal inputs, equal tables.

Peers become identity numbers, port names become numbers, entities and CIDRs are selectors like others (Cilium
semantics), and each rule goes to the tier and stage of its level. What resolves to nobody or to no port gives no entry,
but still puts its direction into default deny.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from l7proxy.model import expression
from l7proxy.model.endpoint import Endpoint
from l7proxy.model.identity import HOST, WORLD, Identity, NamedPort
from l7proxy.model.labels import EVERYTHING, RESERVED, LabelSet, Selects
from l7proxy.model.net import Network
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.rules import AnyPeer, CidrPeer, EveryPeer, Peer, PortMatch, Reach, Rule, SelectorPeer
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry, Stage, TierPolicy
from l7proxy.policy.tiers import Level, Tier

BUILT_IN: Final = "built-in"
"""The kind of references to what no document wrote."""
ALLOW_LOCALHOST: Final = RuleRef(BUILT_IN, "", "allow-localhost")
"""Ingress from this node itself: kubelet's probes. Any explicit deny beats it."""
Peers = tuple[int, ...] | None


def compile_policies(
    rules: Iterable[Rule], endpoints: Iterable[Endpoint], identities: Mapping[int, Identity]
) -> dict[int, EndpointPolicy]:
    """The policy of every endpoint, by its id, ascending."""
    subjects: dict[Selects, list[Rule]] = {}
    for rule in rules:
        subjects.setdefault(rule.subject, []).append(rule)
    resolver = _Resolver(identities)
    known: dict[tuple[LabelSet, frozenset[NamedPort], bool], EndpointPolicy] = {}
    policies: dict[int, EndpointPolicy] = {}
    for endpoint in sorted(endpoints, key=lambda each: each.id):
        key = (
            endpoint.labels,
            endpoint.named_ports,
            endpoint.audit,
        )  # all that policy knows of it: replicas share one answer
        if key not in known:
            known[key] = _endpoint(endpoint, subjects, resolver)
        policies[endpoint.id] = replace(known[key], endpoint=endpoint.id)
    return policies


def cidrs_of(rules: Iterable[Rule]) -> Mapping[Network, Reach]:
    """Every prefix that rules name, excepts included, and the widest reach it is named with.

    Each needs an identity of its own outside; where it reaches further, pods (nodes) in it need to be told apart too.
    """
    found: dict[Network, Reach] = {}
    for rule in rules:
        for peer in _cidrs(rule.peers or ()):
            for network in (peer.network, *peer.excepts):
                found[network] = max(found.get(network, Reach.OUTSIDE), peer.reach, key=_WIDTH.index)
    return found


_WIDTH: Final = (Reach.OUTSIDE, Reach.NODES, Reach.ANYWHERE)


def _cidrs(peers: Iterable[Peer]) -> Iterator[CidrPeer]:
    for peer in peers:
        match peer:
            case CidrPeer():
                yield peer
            case EveryPeer(all_of, none_of):
                yield from _cidrs((*all_of, *none_of))
            case AnyPeer(any_of):
                yield from _cidrs(any_of)
            case _:
                pass


def keys_of(rules: Iterable[Rule]) -> frozenset[tuple[str, str]]:
    """(source, key) of every label that rules select on."""
    asked = {rule.subject for rule in rules} | {one for rule in rules for one in _selectors(rule.peers or ())}
    return frozenset(key for one in asked for key in expression.keys(one))


def _selectors(peers: Iterable[Peer]) -> Iterator[Selects]:
    for peer in peers:
        match peer:
            case SelectorPeer(selector):
                yield selector
            case EveryPeer(all_of, none_of):
                yield from _selectors((*all_of, *none_of))
            case AnyPeer(any_of):
                yield from _selectors(any_of)
            case _:
                pass


def _endpoint(endpoint: Endpoint, subjects: Mapping[Selects, list[Rule]], resolver: _Resolver) -> EndpointPolicy:
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
    by_level: dict[Level, list[Rule]] = {}
    for rule in rules:
        by_level.setdefault(rule.level, []).append(rule)
    tiers: dict[Tier, list[list[Rule]]] = {}
    for level in sorted(by_level):
        tiers.setdefault(level.tier, []).append(by_level[level])
    found = [_tier(direction, tier, levels, endpoint, resolver) for tier, levels in tiers.items()]
    told = tuple(tier for tier in found if tier.stages or tier.denied_by or tier.audited_by)
    return DirectionPolicy(told) if told else None


def _tier(
    direction: Direction, tier: Tier, levels: list[list[Rule]], endpoint: Endpoint, resolver: _Resolver
) -> TierPolicy:
    """The local host comes in where only a default deny would keep it out: allowed at the end of the last stage."""
    stages = [_stage(rules, endpoint, resolver) for rules in levels]
    closing = [rule for rules in levels for rule in rules if rule.default_deny]
    denied_by = _policies(rule for rule in closing if not _audited(rule, endpoint))
    audited_by = _policies(rule for rule in closing if _audited(rule, endpoint))
    if closing and direction is Direction.INGRESS:
        stages[-1] = (*stages[-1], Entry(Action.ALLOW, ALLOW_LOCALHOST, peers=(HOST,)))
    return TierPolicy(tier.name, tuple(stage for stage in stages if stage), denied_by, audited_by)


def _stage(rules: list[Rule], endpoint: Endpoint, resolver: _Resolver) -> Stage:
    entries = {entry for rule in rules for entry in _entries(rule, endpoint, resolver)}
    return tuple(sorted(entries, key=_entry_key))


def _audited(rule: Rule, endpoint: Endpoint) -> bool:
    return rule.audit or endpoint.audit


def _policies(rules: Iterable[Rule]) -> tuple[RuleRef, ...]:
    return tuple(sorted({_policy_ref(rule.ref) for rule in rules}, key=_ref_key))


def _entries(rule: Rule, endpoint: Endpoint, resolver: _Resolver) -> Iterator[Entry]:
    peers = resolver.peers(rule)
    if peers == ():
        return
    action = Action.REDIRECT if rule.http and rule.action is Action.ALLOW else rule.action
    http = rule.http if action is Action.REDIRECT else None
    audit = action is Action.DENY and _audited(rule, endpoint)
    cell = Entry(action, rule.ref, peers, http=http, refusal=rule.refusal, audit=audit, log=rule.log)
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
        self._inside: dict[Network, set[int]] = {}
        for identity in self._identities:
            for network in identity.networks:
                self._inside.setdefault(network, set()).add(identity.id)
        self._everyone = frozenset(identities)
        self._nodes = {each.id for each in self._identities if _is_node(each)}
        self._peers: dict[Peer, frozenset[int] | None] = {}
        self._unions: dict[tuple[Peer, ...], Peers] = {}
        self._ports: dict[PortMatch, dict[tuple[int, int], tuple[int, ...]]] = {}

    def peers(self, rule: Rule) -> Peers:
        """None is everyone, () is nobody."""
        if rule.peers is None:
            return None
        if rule.peers not in self._unions:
            found = self._any(rule.peers)
            self._unions[rule.peers] = None if found is None else tuple(sorted(found))
        return self._unions[rule.peers]

    def by_port(self, match: PortMatch) -> dict[tuple[int, int], tuple[int, ...]]:
        """(protocol, number) → identities under which `match.name` means that."""
        if match not in self._ports:
            found: dict[tuple[int, int], list[int]] = {}
            for identity in self._identities:
                for key in set(_numbers(match, identity.named_ports)):
                    found.setdefault(key, []).append(identity.id)
            self._ports[match] = {key: tuple(ids) for key, ids in found.items()}
        return self._ports[match]

    def _any(self, peers: Iterable[Peer]) -> frozenset[int] | None:
        union: set[int] = set()
        for peer in peers:
            ids = self._one(peer)
            if ids is None:
                return None
            union |= ids
        return frozenset(union)

    def _one(self, peer: Peer) -> frozenset[int] | None:
        if peer not in self._peers:
            self._peers[peer] = self._look(peer)
        return self._peers[peer]

    def _look(self, peer: Peer) -> frozenset[int] | None:
        match peer:
            case SelectorPeer(selector):
                if selector == EVERYTHING:
                    return None
                return frozenset(each.id for each in self._identities if selector.matches(each.labels))
            case CidrPeer(network, excepts, reach):
                return frozenset(self._in(network, reach).difference(*(self._in(hole, reach) for hole in excepts)))
            case AnyPeer(any_of):
                return self._any(any_of)
            case EveryPeer(all_of, none_of):
                return self._every(all_of, none_of)
            case _:
                raise TypeError(f"{peer} is still a name: policy.references comes before compile")

    def _every(self, all_of: Iterable[Peer], none_of: Iterable[Peer]) -> frozenset[int] | None:
        found: frozenset[int] | None = None
        for peer in all_of:
            ids = self._one(peer)
            if ids is not None:
                found = ids if found is None else found & ids
        for peer in none_of:
            ids = self._one(peer)
            if ids is None:
                return frozenset()
            found = (self._everyone if found is None else found) - ids
        return found

    def _in(self, network: Network, reach: Reach) -> set[int]:
        """Whom a prefix means: the outside, and as far as it reaches those whose own addresses lie in it."""
        outside = self._within(network)
        if reach is Reach.OUTSIDE:
            return outside
        inside = self._inside.get(network, set())
        return outside | (inside if reach is Reach.ANYWHERE else inside & self._nodes)

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


def _is_node(identity: Identity) -> bool:
    reserved = {label.key for label in identity.labels.labels if label.source == RESERVED}
    return not reserved.isdisjoint(("host", "remote-node"))


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
        entry.audit,
        entry.log,
    )


_NUMBERS: Final = re.compile(r"([0-9]+)")
