"""Resolves peers and port names to identity numbers, incrementally as identities change.

A peer is resolved on demand, and its last result is updated when only a few identities have changed. An unchanged
result is the same object as before: `compile` uses this to skip work.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from l7proxy.model.identity import CONTESTED, FIRST_POD_IDENTITY, WORLD, Identity, NamedPort
from l7proxy.model.labels import EVERYTHING, RESERVED
from l7proxy.model.net import Network
from l7proxy.model.verdict import Action
from l7proxy.policy.rules import AnyPeer, CidrPeer, EveryPeer, Peer, PortMatch, Reach, Rule, SelectorPeer

Peers = tuple[int, ...] | None
"""Ascending identity numbers; None is every peer."""
Ports = Mapping[tuple[int, int], tuple[int, ...]]
"""(protocol, number) → identities."""
MOST: Final = 100_000
"""Cached results; above this the caches are cleared, to drop those of deleted rules."""


class Resolver:
    """`update` sets the identities; the other methods resolve. Results are cached with the age of the identities."""

    def __init__(self) -> None:
        self._age = 0
        self._given: Mapping[int, Identity] = {}
        self._known: dict[int, Identity] = {}
        self._come: list[Identity] = []
        self._gone: frozenset[int] = frozenset()
        self._peers: dict[Peer, tuple[int, frozenset[int] | None]] = {}
        self._unions: dict[tuple[tuple[Peer, ...], bool], tuple[int, Peers]] = {}
        self._ports: dict[tuple[PortMatch, bool], tuple[int, Ports]] = {}
        self._index({})

    def update(self, identities: Mapping[int, Identity]) -> None:
        """Set all identities."""
        if identities is self._given:
            return
        self._given = identities
        if len(self._peers) > MOST or len(self._unions) > MOST:
            self._peers, self._unions, self._ports = {}, {}, {}
        come = [one for number, one in identities.items() if not _equal(self._known.get(number), one)]
        gone = frozenset(self._known.keys() - identities.keys()) | {one.id for one in come if one.id in self._known}
        if not come and not gone:
            return
        self._age += 1
        touched = [*come, *(self._known[number] for number in gone)]
        self._come, self._gone, self._known = come, gone, dict(sorted(identities.items()))
        if any(one.cidr is not None or one.networks or one.id < FIRST_POD_IDENTITY for one in touched):
            self._index(self._known)
        else:
            self._everyone = frozenset(self._known)

    def _index(self, known: Mapping[int, Identity]) -> None:
        """Build the lookup tables for CIDRs: identities outside by address, and pods and nodes by named networks."""
        self._outside = {version: _by_address(known.values(), version) for version in (4, 6)}
        self._inside: dict[Network, set[int]] = {}
        for identity in known.values():
            for network in identity.networks:
                self._inside.setdefault(network, set()).add(identity.id)
        self._everyone = frozenset(known)
        self._nodes = {each.id for each in known.values() if _is_node(each)}
        self._world = {each.id for each in known.values() if each.labels.get(RESERVED, "world") is not None}

    def peers(self, rule: Rule) -> Peers:
        """None is every peer, () is no peer."""
        if rule.peers is None:
            return None
        asked = rule.peers, rule.action is Action.DENY
        age, known = self._unions.get(asked, (-1, None))
        if age != self._age:
            found = self._any(rule.peers)
            made = None if found is None else tuple(sorted(self._with_contested(found, deny=asked[1])))
            known = known if age >= 0 and known == made else made
            self._unions[asked] = self._age, known
        return known

    def by_port(self, match: PortMatch, action: Action) -> Ports:
        """(protocol, number) → identities for which `match.name` has this meaning in a rule with this action."""
        asked = match, action is Action.DENY
        age, known = self._ports.get(asked, (-1, {}))
        if age != self._age:
            made = self._named(match, deny=asked[1])
            known = known if age >= 0 and known == made else made
            self._ports[asked] = self._age, known
        return known

    def _with_contested(self, found: frozenset[int], *, deny: bool) -> frozenset[int]:
        """The owner of a conflicting IP is unknown: it matches every deny rule, but only allow rules for every peer."""
        if CONTESTED not in self._known:
            return found
        return found | {CONTESTED} if deny and found else found - {CONTESTED}

    def _named(self, match: PortMatch, *, deny: bool) -> Ports:
        contested = (CONTESTED,) if deny and CONTESTED in self._known else ()
        found: dict[tuple[int, int], list[int]] = {}
        for identity in self._known.values():
            for key in set(numbers(match, identity.named_ports)):
                found.setdefault(key, []).append(identity.id)
        return {key: (*contested, *ids) for key, ids in found.items()}  # ascending: pods have higher numbers

    def _any(self, peers: Iterable[Peer]) -> frozenset[int] | None:
        union: set[int] = set()
        for peer in peers:
            ids = self._one(peer)
            if ids is None:
                return None
            union |= ids
        return frozenset(union)

    def _one(self, peer: Peer) -> frozenset[int] | None:
        age, known = self._peers.get(peer, (-1, None))
        if age == self._age:
            return known
        if isinstance(peer, SelectorPeer) and known is not None and age == self._age - 1:
            found: frozenset[int] | None = self._followed(peer, known)
        else:
            found = self._look(peer)
        found = known if age >= 0 and known == found else found
        self._peers[peer] = self._age, found
        return found

    def _followed(self, peer: SelectorPeer, before: frozenset[int]) -> frozenset[int]:
        """Update the result from before the last `update`."""
        matching = {one.id for one in self._come if peer.selector.matches(one.labels)}
        return (before - self._gone) | matching if matching or not before.isdisjoint(self._gone) else before

    def _look(self, peer: Peer) -> frozenset[int] | None:
        match peer:
            case SelectorPeer(selector):
                if selector == EVERYTHING:
                    return None
                return frozenset(each.id for each in self._known.values() if selector.matches(each.labels))
            case CidrPeer(network, excepts, reach):
                return frozenset(self._in(network, reach).difference(*(self._in(hole, reach) for hole in excepts)))
            case AnyPeer(any_of):
                return self._any(any_of)
            case EveryPeer(all_of, none_of):
                return self._every(all_of, none_of)
            case _:
                raise TypeError(f"{peer} is unresolved: apply policy.references before compile")

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
        """The identities that a prefix matches: outside, and within its reach those with addresses in it."""
        outside = self._within(network)
        if network.prefixlen == 0 and reach is not Reach.ANYWHERE:
            # In single stack, /0 of either family is the world (Cilium semantics). In dual stack, _world is empty.
            outside = outside | self._world
        if reach is Reach.OUTSIDE:
            return outside
        inside = self._inside.get(network, set())
        return outside | (inside if reach is Reach.ANYWHERE else inside & self._nodes)

    def _within(self, network: Network) -> set[int]:
        """Identities whose prefix `network` contains: a range of the sorted table, without wider prefixes."""
        starts, found = self._outside[network.version]
        low = bisect_left(starts, int(network.network_address))
        high = bisect_right(starts, int(network.broadcast_address))
        return {number for length, number in found[low:high] if length >= network.prefixlen}


def _by_address(identities: Iterable[Identity], version: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Identities outside, sorted by first address: all first addresses, and (prefix length, identity) for each.

    Only identities with a `world` label are outside: there a CIDR never matches a pod or a node. The single-stack world
    has no prefix: it is the rest of either family.
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


def _equal(known: Identity | None, other: Identity) -> bool:
    return known is other or known == other


def numbers(match: PortMatch, named_ports: Iterable[NamedPort]) -> Iterator[tuple[int, int]]:
    for name, protocol, number in named_ports:
        if name == match.name and protocol in match.protocols:
            yield protocol, number
