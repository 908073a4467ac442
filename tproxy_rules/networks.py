"""Converts nested prefixes into disjoint ranges, as interval sets need them for longest prefix match.

Pure address arithmetic. Host addresses (/32, /128) and defaults (/0) are separate: hosts are looked up in a hash,
defaults are constants.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from tproxy_rules.desired import Prefixes, VersionedPrefixes

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


class VersionedHosts(Mapping[str, int]):
    """The host addresses of one IP version among versioned prefixes, as a view."""

    def __init__(self, prefixes: VersionedPrefixes, version: int) -> None:
        self._prefixes = prefixes
        self._version = version
        self._end = "/32" if version == 4 else "/128"

    def changed_since(self, before: object) -> Collection[str] | None:
        """The addresses that may differ; None if that is not known."""
        if not isinstance(before, VersionedHosts) or before._version != self._version:
            return None
        found = self._prefixes.changed_since(before._prefixes)
        return None if found is None else [text.removesuffix(self._end) for text in found if self._holds(text)]

    def __getitem__(self, address: str) -> int:
        found = self._prefixes.get(address + self._end)
        if found is None or family(address) != self._version:
            raise KeyError(address)
        return found

    def __iter__(self) -> Iterator[str]:
        return (text.removesuffix(self._end) for text, _ in self._prefixes if self._holds(text))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _holds(self, text: str) -> bool:
        return text.endswith(self._end) and family(text) == self._version


def changed(before: Mapping[str, int], after: Mapping[str, int]) -> Collection[str]:
    """The keys that may differ; of two versions those alone are looked at."""
    if before is after:
        return ()
    known = after.changed_since(before) if isinstance(after, VersionedHosts) else None
    return {key for key, _ in before.items() ^ after.items()} if known is None else known


def is_host(prefix: str) -> bool:
    return prefix.endswith("/128" if ":" in prefix else "/32")


def wide_of(identities: Prefixes) -> dict[str, int]:
    """The prefixes that hold more than one address."""
    return {prefix: number for prefix, number in identities if not is_host(prefix)}


def split(identities: Prefixes, wide: Mapping[str, int] | None = None) -> dict[int, Identities]:
    """The identities of each IP version, by version. `wide`: `wide_of` them, where it is known."""
    wide = wide_of(identities) if wide is None else wide
    if isinstance(identities, VersionedPrefixes):
        return _identities(wide, {version: VersionedHosts(identities, version) for version in (4, 6)})
    hosts: dict[int, dict[str, int]] = {4: {}, 6: {}}
    for text, identity in identities:
        if is_host(text):
            hosts[family(text)][text.partition("/")[0]] = identity
    return _identities(wide, hosts)


def with_hosts(nets: Mapping[int, Identities], identities: VersionedPrefixes) -> dict[int, Identities]:
    """The same ranges, with the hosts of another version of the prefixes."""
    return {version: replace(net, hosts=VersionedHosts(identities, version)) for version, net in nets.items()}


def _identities(wide: Mapping[str, int], hosts: Mapping[int, Mapping[str, int]]) -> dict[int, Identities]:
    found: dict[int, Identities] = {}
    for version, default in ((4, "0.0.0.0/0"), (6, "::/0")):
        ranges = ((one, number) for one, number in wide.items() if family(one) == version and one != default)
        found[version] = Identities(wide.get(default, 0), _ranges(tuple(sorted(ranges))), hosts[version])
    return found


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
