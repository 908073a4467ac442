"""A stage as sets to look into: entries sorted by verdict and by which fields they name.

What is one lookup for a kernel is one `Shape`. Ranges of one peer and protocol are merged, so that nothing overlaps;
whole port ranges lose the port, single ports go to hashes and only real ranges to interval sets. Type and code of ICMP
stand elsewhere in a packet than ports, so they have shapes of their own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from typing import Final

from tproxy_rules.desired import Stage, Verdict
from tproxy_rules.networks import merge
from tproxy_rules.validate import ANY_PROTOCOL, ICMP, MAX_PORT

BY_PRECEDENCE: Final = (Verdict.DENY, Verdict.STEER, Verdict.ALLOW, Verdict.PASS)


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
    TYPE = "type"
    PEER_TYPE = "peer_type"
    TYPES = "types"
    PEER_TYPES = "peer_types"

    @property
    def ranged(self) -> bool:
        return self in (Shape.RANGE, Shape.PEER_RANGE, Shape.TYPES, Shape.PEER_TYPES)


_PORTS: Final = {
    # (anyone, several): of ports, of ICMP's types
    (True, False): (Shape.PORT, Shape.TYPE),
    (True, True): (Shape.RANGE, Shape.TYPES),
    (False, False): (Shape.PEER_PORT, Shape.PEER_TYPE),
    (False, True): (Shape.PEER_RANGE, Shape.PEER_TYPES),
}


@dataclass(frozen=True, slots=True, order=True)
class Element:
    """Fields that the shape does not name are -1."""

    peer: int = -1
    protocol: int = -1
    first: int = -1
    last: int = -1


def lookups(stage: Stage, verdict: Verdict) -> dict[Shape, tuple[Element, ...]]:
    """The non-empty shapes of one verdict, elements ascending and disjoint."""
    ports: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for entry in stage:
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
    return [
        (_PORTS[anyone, first != last][protocol in ICMP], Element(peer, protocol, first, last))
        for first, last in merged
    ]
