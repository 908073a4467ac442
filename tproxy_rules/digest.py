"""One picture, one canonical form, one digest: how a fresh process tells that the kernel already shows it."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address, ip_network

from tproxy_rules.desired import Desired, Endpoint, Entry, Settings, Stage, Table, Tier, Verdict


def canonical(table: Table) -> Table:
    """Without stages that hold nothing and open tiers without stages: they decide nothing."""
    tiers = (Tier(tuple(_stage(stage) for stage in tier.stages if stage), tier.closed) for tier in table.tiers)
    return Table(tuple(tier for tier in tiers if tier.closed or tier.stages))


def normalise(desired: Desired, table: Callable[[Table], Table] = canonical) -> Desired:
    """The same picture with everything canonical, sorted and unique. ValueError where an address is none."""
    endpoints = (_endpoint(one, table) for one in desired.endpoints)
    return replace(
        desired,
        settings=_settings(desired.settings),
        identities=tuple(sorted({(network(prefix), int(number)) for prefix, number in desired.identities})),
        endpoints=tuple(sorted(endpoints, key=lambda one: one.id)),
        bridges=tuple(sorted(set(desired.bridges), key=lambda bridge: (bridge.name, bridge.mac))),
        frontends=tuple(
            sorted(
                {replace(one, address=_address(one.address)) for one in desired.frontends},
                key=lambda one: (one.address, one.protocol, one.port, one.steer),
            )
        ),
    )


def digest(desired: Desired) -> str:
    """SHA-256, in hex, of any form of the picture."""
    return fingerprint(normalise(desired))


def table_digest(table: Table) -> bytes:
    """SHA-256 of a canonical table: every field at a fixed width, every list after its length."""
    found = hashlib.sha256(struct.pack("<I", len(table.tiers)))
    for tier in table.tiers:
        found.update(struct.pack("<?I", tier.closed, len(tier.stages)))
        for stage in tier.stages:
            found.update(struct.pack("<I", len(stage)))
            for one in stage:
                fields = (one.verdict, one.protocol, one.first, one.last, one.any_peer, len(one.peers))
                found.update(struct.pack("<BhHH?I", *fields))
                found.update(array("I", one.peers))
    return found.digest()


def fingerprint(desired: Desired, table: Callable[[Table], bytes] = table_digest) -> str:
    """The digest of a canonical picture. Frozen values of numbers and texts: their repr is their text."""
    tables = [(one.ingress and table(one.ingress), one.egress and table(one.egress)) for one in desired.endpoints]
    bare = tuple(replace(one, ingress=None, egress=None) for one in desired.endpoints)
    return hashlib.sha256(repr((replace(desired, endpoints=bare), tables)).encode()).hexdigest()


@lru_cache(maxsize=1 << 16)
def network(prefix: str) -> str:
    """The canonical text of a prefix, or ValueError."""
    return str(ip_network(prefix))


@lru_cache(maxsize=1 << 16)
def _address(address: str) -> str:
    return str(ip_address(address))


def _settings(settings: Settings) -> Settings:
    return replace(settings, families=tuple(sorted(set(settings.families))))


def _endpoint(endpoint: Endpoint, table: Callable[[Table], Table]) -> Endpoint:
    return replace(
        endpoint,
        addresses=tuple(sorted({_address(address) for address in endpoint.addresses})),
        ingress=None if endpoint.ingress is None else table(endpoint.ingress),
        egress=None if endpoint.egress is None else table(endpoint.egress),
    )


def _stage(stage: Stage) -> Stage:
    return tuple(sorted({_entry(entry) for entry in stage}))


def _entry(entry: Entry) -> Entry:
    """The entry itself where it is canonical already."""
    peers = tuple(sorted(set(entry.peers)))
    if entry.peers == peers and isinstance(entry.verdict, Verdict):
        return entry
    return replace(entry, verdict=Verdict(entry.verdict), peers=peers)
