"""Converts nested prefixes into disjoint ranges, as interval sets need them for longest prefix match.

Pure address arithmetic. Host addresses (/32, /128) and defaults (/0) are separate: hosts are looked up in a hash,
defaults are constants.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses `first` to `last`, inclusive, with one identity."""

    first: Address
    last: Address
    identity: int


@dataclass(frozen=True, slots=True)
class Identities:
    """Addresses of one IP family, by kind of lookup."""

    default: int
    ranges: tuple[Range, ...]
    hosts: Mapping[str, int]


def family(address: str) -> int:
    """IP version, 4 or 6, of an address in canonical text."""
    return 6 if ":" in address else 4


def split(identities: Iterable[tuple[str, int]]) -> dict[int, Identities]:
    """The identities of each IP version, by version."""
    defaults = {4: 0, 6: 0}
    hosts: dict[int, dict[str, int]] = {4: {}, 6: {}}
    prefixes: dict[int, list[tuple[str, int]]] = {4: [], 6: []}
    hosts4, hosts6 = hosts[4], hosts[6]
    for text, identity in identities:
        if text.endswith("/32") and ":" not in text:  # nearly all are host addresses
            hosts4[text[:-3]] = identity
        elif text.endswith("/128"):
            hosts6[text[:-4]] = identity
        elif text.endswith("/0"):
            defaults[family(text)] = identity
        else:
            prefixes[family(text)].append((text, identity))
    return {
        version: Identities(defaults[version], _ranges(tuple(prefixes[version])), hosts[version]) for version in (4, 6)
    }


@lru_cache(maxsize=4)
def _ranges(prefixes: tuple[tuple[str, int], ...]) -> tuple[Range, ...]:
    """Cached: prefixes change seldom, hosts often."""
    return tuple(_flatten((ipaddress.ip_network(text), identity) for text, identity in prefixes))


def _flatten(prefixes: Iterable[tuple[Network, int]]) -> Iterator[Range]:
    """One sweep over the address space, with a stack of the prefixes open at each point."""
    open_: list[tuple[int, int]] = []  # (last address, identity), outermost first
    make: type[Address] = ipaddress.IPv4Address
    at = 0

    def until(end: int) -> Iterator[Range]:
        nonlocal at
        while open_ and at <= end:
            last, identity = open_[-1]
            stop = min(last, end)
            if at <= stop:
                yield Range(make(at), make(stop), identity)
                at = stop + 1
            if last > end:
                return
            open_.pop()

    for network, identity in sorted(prefixes, key=lambda item: (int(item[0].network_address), item[0].prefixlen)):
        make = type(network.network_address)
        first = int(network.network_address)
        yield from until(first - 1)
        while open_ and open_[-1][0] < first:
            open_.pop()
        at = first
        open_.append((int(network.broadcast_address), identity))
    if open_:
        yield from until(open_[0][0])


def merge(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same integers as disjoint, ascending, non-adjacent ranges, inclusive."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)
