"""Addresses and prefixes. Interfaces between modules use an address's canonical text: `str(ip_address(x))`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Generic, TypeVar

from l7proxy.model.versioned import changes

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
V = TypeVar("V")
_OCTET: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_SINGLE: Final = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}/32")
"""A single IPv4 address, as nearly all prefixes are; matched by expression because parsing is slower."""


def canonical(text: str) -> str:
    """The canonical text of an address. An IPv4-mapped IPv6 address becomes IPv4. ValueError for other text."""
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def family_of(text: str) -> int:
    """4 or 6."""
    return 6 if ":" in text else 4


def within(inner: Network, outer: Network) -> bool:
    """True when `outer` contains `inner`; False for different families."""
    if isinstance(inner, IPv4Network) and isinstance(outer, IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, IPv6Network) and isinstance(outer, IPv6Network):
        return inner.subnet_of(outer)
    return False


def single(address: str) -> Network:
    """The prefix that contains only this address."""
    return ip_network(address)


def single_text(address: str) -> str:
    """The same for a canonical address, as text."""
    return f"{address}/{128 if ':' in address else 32}"


class Networks:
    """A set of prefixes that finds which of them contain a given prefix."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._found: dict[tuple[int, int], dict[int, Network]] = {}
        for network in networks:
            bits = network.max_prefixlen - network.prefixlen
            key = int(network.network_address) >> bits
            self._found.setdefault((network.version, network.prefixlen), {})[key] = network

    def holding(self, inner: Network) -> frozenset[Network]:
        """The prefixes that contain all of `inner`."""
        number = int(inner.network_address)
        return frozenset(
            table[key]
            for (version, length), table in self._found.items()
            if version == inner.version
            and length <= inner.prefixlen
            and (key := number >> (inner.max_prefixlen - length)) in table
        )


@dataclass(frozen=True)
class HostPort:
    """One end of a connection."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class PrefixTable(Generic[V]):
    """Longest-prefix match: single addresses in the given mapping, the few shorter prefixes by length, longest first.

    Prefixes are canonical text (`10.0.0.1/32`), else ValueError; entries never change. Of `known`, a table of another
    version of the mapping, only what has changed is parsed.
    """

    def __init__(self, entries: Mapping[str, V], known: PrefixTable[V] | None = None) -> None:
        self._entries = entries
        self._wide: Mapping[Network, V] = {}
        self._by_length: dict[int, list[tuple[int, dict[int, V]]]] = {4: [], 6: []}
        if known is not None:
            self._wide, self._by_length = known._wide, known._by_length
        parsed = map(_wide, entries if known is None else changes(known._entries, entries))
        changed = {network: entries.get(str(network)) for network in parsed if network is not None}
        if changed:
            wide = {**self._wide, **changed}
            self._wide = {network: value for network, value in wide.items() if value is not None}
            self._by_length = _by_length(self._wide)

    def get(self, address: str) -> V | None:
        """The value of the longest prefix that contains `address` (canonical text), or None."""
        version = family_of(address)
        bits = 32 if version == 4 else 128
        value = self._entries.get(f"{address}/{bits}")
        if value is not None:
            return value
        lengths = self._by_length[version]
        if not lengths:
            return None
        number = int(ip_address(address))
        for length, table in lengths:
            value = table.get(number >> (bits - length))
            if value is not None:
                return value
        return None


def _wide(text: str) -> Network | None:
    """The prefix, or None if it is a single address. ValueError if it is not in canonical form."""
    if _SINGLE.fullmatch(text):
        return None
    network = ip_network(text)
    if str(network) != text:
        raise ValueError(f"{text} is not in canonical form: {network}")
    return network if network.prefixlen < network.max_prefixlen else None


def _by_length(wide: Mapping[Network, V]) -> dict[int, list[tuple[int, dict[int, V]]]]:
    found: dict[int, dict[int, dict[int, V]]] = {4: {}, 6: {}}
    for network, value in wide.items():
        key = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
        found[network.version].setdefault(network.prefixlen, {})[key] = value
    return {version: sorted(lengths.items(), reverse=True) for version, lengths in found.items()}
