"""Converts a stage into sets: entries grouped by verdict and by the fields they name.

One `Shape` is one lookup in the kernel. Ranges of one peer and protocol are merged, so that they do not overlap. A full
port range omits the port, single ports go to hash sets, and only true ranges to interval sets. ICMP type and code are
at another offset than ports, so they have their own shapes.

The work grows with the number of entries, not of peers, except for overlapping port ranges.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from operator import attrgetter
from typing import Final

from tproxy_rules.desired import Entry, Stage, Verdict
from tproxy_rules.networks import merge
from tproxy_rules.validate import ANY_PROTOCOL, ICMP, MAX_PORT

BY_PRECEDENCE: Final = (Verdict.DENY, Verdict.STEER, Verdict.ALLOW, Verdict.PASS)

Cell = tuple[int, int, int]
"""Protocol, first and last port; -1 for fields that the shape does not use."""
Cells = Mapping[Cell, tuple[int, ...] | None]
"""The peers of each cell, ascending; None means every peer. Cells of one peer and protocol are disjoint."""


class Shape(StrEnum):
    """The fields of a set element, in lookup order."""

    ANY = "any"
    PEER = "peer"
    PROTOCOL = "protocol"
    PEER_PROTOCOL = "peer_protocol"
    PORT = "port"
    PEER_PORT = "peer_port"
    RANGE = "range"
    PEER_RANGE = "peer_range"
    TYPE = "type"
    PEER_TYPE = "peer_type"
    TYPES = "types"
    PEER_TYPES = "peer_types"

    @property
    def ranged(self) -> bool:
        return self in (Shape.RANGE, Shape.PEER_RANGE, Shape.TYPES, Shape.PEER_TYPES)


_PORTS: Final = {
    # (any peer, true range): for ports, for ICMP types
    (True, False): (Shape.PORT, Shape.TYPE),
    (True, True): (Shape.RANGE, Shape.TYPES),
    (False, False): (Shape.PEER_PORT, Shape.PEER_TYPE),
    (False, True): (Shape.PEER_RANGE, Shape.PEER_TYPES),
}


def lookups(stage: Stage) -> dict[Verdict, dict[Shape, Cells]]:
    """The non-empty shapes of each verdict in use, by precedence."""
    alike: dict[tuple[Verdict, int, bool], list[Entry]] = defaultdict(list)
    for entry in stage:
        if entry.any_peer or entry.peers:
            alike[entry.verdict, entry.protocol, entry.any_peer].append(entry)
    found: dict[Verdict, dict[Shape, dict[Cell, tuple[int, ...] | None]]] = {}
    for (verdict, protocol, anyone), entries in alike.items():
        shapes = found.setdefault(verdict, {})
        for (first, last), peers in _disjoint(entries):
            shape, cell = _shape(protocol, anyone, first, last)
            shapes.setdefault(shape, {})[cell] = None if anyone else peers
    return {
        verdict: {shape: found[verdict][shape] for shape in Shape if shape in found[verdict]}
        for verdict in BY_PRECEDENCE
        if verdict in found
    }


def _disjoint(entries: list[Entry]) -> Iterator[tuple[tuple[int, int], tuple[int, ...]]]:
    """Ranges with their peers; no two overlap for one peer. Here peer -1 means every peer."""
    group: list[Entry] = []
    end = -1
    for entry in sorted(entries, key=attrgetter("first", "last")):
        if group and entry.first > end + 1:
            yield from _united(group)
            group = []
        group.append(entry)
        end = max(end, entry.last)
    yield from _united(group)


def _united(touching: list[Entry]) -> Iterable[tuple[tuple[int, int], tuple[int, ...]]]:
    """The same for entries with overlapping or adjacent ranges."""
    if len(touching) == 1:
        return [((touching[0].first, touching[0].last), touching[0].peers)]
    ranges: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for entry in touching:
        for peer in (-1,) if entry.any_peer else entry.peers:
            ranges[peer].append((entry.first, entry.last))
    peers: dict[tuple[int, int], list[int]] = defaultdict(list)
    for peer in sorted(ranges):
        for merged in merge(ranges[peer]):
            peers[merged].append(peer)
    return [(merged, tuple(some)) for merged, some in peers.items()]


def _shape(protocol: int, anyone: bool, first: int, last: int) -> tuple[Shape, Cell]:
    if protocol == ANY_PROTOCOL:
        return Shape.ANY if anyone else Shape.PEER, (-1, -1, -1)
    if (first, last) == (0, MAX_PORT):
        return Shape.PROTOCOL if anyone else Shape.PEER_PROTOCOL, (protocol, -1, -1)
    return _PORTS[anyone, first != last][protocol in ICMP], (protocol, first, last)
