"""A policy table as sets to look into: entries sorted by verdict and by which fields they name.

What is one lookup for a kernel is one `Shape`. Ranges of one peer and protocol are merged, so that nothing overlaps;
whole port ranges lose the port, single ports go to hashes and only real ranges to interval sets.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from typing import Final

from tproxy_rules.desired import Table, Verdict
from tproxy_rules.networks import merge
from tproxy_rules.validate import ANY_PROTOCOL, MAX_PORT

BY_PRECEDENCE: Final = (Verdict.DENY, Verdict.STEER, Verdict.ALLOW)


class Shape(Enum):
    """The fields an element names, in the order in which they are looked up."""

    ANY = "any"
    PEER = "peer"
    PROTOCOL = "protocol"
    PEER_PROTOCOL = "peer_protocol"
    PORT = "port"
    PEER_PORT = "peer_port"
    RANGE = "range"
    PEER_RANGE = "peer_range"


@dataclass(frozen=True, slots=True, order=True)
class Element:
    """Fields that the shape does not name are -1."""

    peer: int = -1
    protocol: int = -1
    first: int = -1
    last: int = -1


def lookups(table: Table, verdict: Verdict) -> dict[Shape, tuple[Element, ...]]:
    """The non-empty shapes of one verdict, elements ascending and disjoint."""
    ports: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for entry in table.entries:
        if entry.verdict is verdict:
            for peer in (-1,) if entry.any_peer else entry.peers:
                ports[peer, entry.protocol].append((entry.first, entry.last))
    found: dict[Shape, set[Element]] = defaultdict(set)
    for (peer, protocol), ranges in ports.items():
        for shape, element in _elements(peer, protocol, ranges):
            found[shape].add(element)
    return {shape: tuple(sorted(found[shape])) for shape in Shape if shape in found}


def _elements(peer: int, protocol: int, ranges: list[tuple[int, int]]) -> list[tuple[Shape, Element]]:
    anyone = peer == -1
    if protocol == ANY_PROTOCOL:
        return [(Shape.ANY if anyone else Shape.PEER, Element(peer))]
    merged = merge(ranges)
    if merged == ((0, MAX_PORT),):
        return [(Shape.PROTOCOL if anyone else Shape.PEER_PROTOCOL, Element(peer, protocol))]
    single, several = (Shape.PORT, Shape.RANGE) if anyone else (Shape.PEER_PORT, Shape.PEER_RANGE)
    return [(single if first == last else several, Element(peer, protocol, first, last)) for first, last in merged]
