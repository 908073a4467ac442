"""Canonical form and digest of a desired state, by which a new process sees that it is already applied."""

from __future__ import annotations

import hashlib
import re
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address, ip_network
from operator import is_, lt
from typing import Any, Final

from tproxy_rules.desired import (
    Bridge,
    Desired,
    Endpoint,
    Entry,
    Prefixes,
    Settings,
    Stage,
    Table,
    Tier,
    VersionedPrefixes,
)

_OCTET: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_WIDTH: Final = 256
_MODULUS: Final = 1 << 8 * _WIDTH
_HOST: Final = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}/32")
"""A single IPv4 address in canonical form, as nearly all prefixes are: neither parsed nor remembered."""


def canonical(table: Table) -> Table:
    """Drop empty stages, and open tiers without stages: they decide nothing."""
    tiers = (Tier(tuple(_stage(stage) for stage in tier.stages if stage), tier.closed) for tier in table.tiers)
    return replace(table, tiers=tuple(tier for tier in tiers if tier.closed or tier.stages))


def canonical_identities(identities: Prefixes) -> Prefixes:
    """Optimised for many prefixes that are already canonical. ValueError on an invalid prefix."""
    given = [prefix for prefix, _ in identities]
    texts = list(map(network, given))
    if texts == given and (isinstance(identities, VersionedPrefixes) or _ascends(texts)):
        return identities
    return tuple(sorted(set(zip(texts, (number for _, number in identities), strict=True))))


def normalise(
    desired: Desired,
    table: Callable[[Table], Table] = canonical,
    identities: Callable[[Prefixes], Prefixes] = canonical_identities,
) -> Desired:
    """The same state, canonical, sorted and unique. ValueError on an invalid address."""
    endpoints = (_endpoint(one, table) for one in desired.endpoints)
    return replace(
        desired,
        settings=_settings(desired.settings),
        identities=identities(desired.identities),
        endpoints=tuple(sorted(endpoints, key=lambda one: one.id)),
        bridges=tuple(sorted({_bridge(one) for one in desired.bridges}, key=lambda bridge: (bridge.name, bridge.mac))),
        other_ports=tuple(sorted(set(desired.other_ports))),
        held=tuple(sorted(set(map(network, desired.held)))),
        frontends=tuple(
            sorted(
                {replace(one, address=canonical_address(one.address)) for one in desired.frontends},
                key=lambda one: (one.address, one.protocol, one.port, one.steer),
            )
        ),
    )


def digest(desired: Desired) -> str:
    """SHA-256, in hex, of a state in any form."""
    return fingerprint(normalise(desired))


def table_digest(table: Table) -> bytes:
    """SHA-256 of a canonical table: fields of fixed width, lists with their length first."""
    found = hashlib.sha256(struct.pack("<?I", table.governed, len(table.tiers)))
    for tier in table.tiers:
        found.update(struct.pack("<?I", tier.closed, len(tier.stages)))
        for stage in tier.stages:
            found.update(struct.pack("<I", len(stage)))
            for one in stage:
                fields = (one.verdict, one.protocol, one.first, one.last, one.any_peer, len(one.peers))
                found.update(struct.pack("<BhHH?I", *fields))
                found.update(array("I", one.peers))
    return found.digest()


def identities_sum(identities: Iterable[tuple[str, int]]) -> int:
    """The sum of a hash of each, which follows changes: a multiset hash (Bellare and Micciancio's AdHash). Its 2048
    bits make it as hard to find two sets with one sum as it is with SHA-256."""
    return sum(_pair_hash(prefix, number) for prefix, number in identities) % _MODULUS


def _pair_hash(prefix: str, number: int) -> int:
    return int.from_bytes(hashlib.shake_128(f"{prefix} {number}".encode()).digest(_WIDTH), "little")


def sum_digest(total: int) -> bytes:
    """SHA-256 of an `identities_sum`."""
    return hashlib.sha256((total % _MODULUS).to_bytes(_WIDTH, "little")).digest()


def identities_digest(identities: Prefixes) -> bytes:
    """Of canonical identities, in any order."""
    return sum_digest(identities_sum(identities))


def fingerprint(desired: Desired, identities: Callable[[Prefixes], bytes] = identities_digest) -> str:
    """The digest of a canonical state. `identities` is `identities_digest`, or a cache of it.

    All values are frozen numbers and strings, so `repr` is stable."""
    tables = [tuple(table and table_digest(table) for table in (one.ingress, one.egress)) for one in desired.endpoints]
    bare = tuple(replace(one, ingress=None, egress=None) for one in desired.endpoints)
    content = (replace(desired, identities=(), endpoints=bare), tables, identities(desired.identities))
    return hashlib.sha256(repr(content).encode()).hexdigest()


def network(prefix: str) -> str:
    """The canonical text of a prefix, or ValueError."""
    return prefix if _HOST.fullmatch(prefix) else _network(prefix)


@lru_cache(maxsize=1 << 16)
def _network(prefix: str) -> str:
    return str(ip_network(prefix))


@lru_cache(maxsize=1 << 16)
def canonical_address(address: str) -> str:
    """The canonical text of an address, or ValueError."""
    return str(ip_address(address))


def _settings(settings: Settings) -> Settings:
    families, listeners = tuple(sorted(set(settings.families))), tuple(sorted(set(settings.listeners)))
    return replace(settings, families=families, listeners=listeners)


def _bridge(bridge: Bridge) -> Bridge:
    return replace(bridge, ports=tuple(sorted(set(bridge.ports))), uplinks=tuple(sorted(set(bridge.uplinks))))


def _endpoint(endpoint: Endpoint, table: Callable[[Table], Table]) -> Endpoint:
    return replace(
        endpoint,
        addresses=tuple(sorted({canonical_address(address) for address in endpoint.addresses})),
        ingress=None if endpoint.ingress is None else table(endpoint.ingress),
        egress=None if endpoint.egress is None else table(endpoint.egress),
    )


def _stage(stage: Stage) -> Stage:
    """The same object if the stage is already canonical, which is the usual case."""
    entries = tuple(canonical_entry(entry) for entry in stage)
    if not _ascends(entries):
        return tuple(sorted(set(entries)))
    return stage if all(map(is_, entries, stage)) else entries


def canonical_entry(entry: Entry) -> Entry:
    return entry if _ascends(entry.peers) else replace(entry, peers=tuple(sorted(set(entry.peers))))


def _ascends(some: Sequence[Any]) -> bool:
    return all(map(lt, some, some[1:]))
