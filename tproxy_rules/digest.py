"""One picture, one text, one digest: how a fresh process tells that the kernel already shows what it wants."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from ipaddress import ip_address, ip_network

from tproxy_rules.desired import Desired, Endpoint, Entry, Settings, Stage, Table, Tier, Verdict


def normalise(desired: Desired) -> Desired:
    """The same picture with everything canonical, sorted and unique. ValueError where an address is none."""
    return replace(
        desired,
        settings=_settings(desired.settings),
        identities=tuple(sorted({(str(ip_network(prefix)), int(number)) for prefix, number in desired.identities})),
        endpoints=tuple(sorted((_endpoint(one) for one in desired.endpoints), key=lambda one: one.id)),
        bridges=tuple(sorted(set(desired.bridges), key=lambda bridge: (bridge.name, bridge.mac))),
        frontends=tuple(
            sorted(
                {replace(one, address=str(ip_address(one.address))) for one in desired.frontends},
                key=lambda one: (one.address, one.protocol, one.port, one.steer),
            )
        ),
    )


def digest(desired: Desired) -> str:
    """SHA-256, in hex, of the canonical text. Frozen values of numbers and texts: their repr is that text."""
    return hashlib.sha256(repr(normalise(desired)).encode()).hexdigest()


def _settings(settings: Settings) -> Settings:
    return replace(settings, families=tuple(sorted(set(settings.families))))


def _endpoint(endpoint: Endpoint) -> Endpoint:
    return replace(
        endpoint,
        addresses=tuple(sorted({str(ip_address(address)) for address in endpoint.addresses})),
        ingress=_table(endpoint.ingress),
        egress=_table(endpoint.egress),
    )


def _table(table: Table | None) -> Table | None:
    """Without stages that hold nothing and open tiers without stages: they decide nothing."""
    if table is None:
        return None
    tiers = (Tier(tuple(_stage(stage) for stage in tier.stages if stage), tier.closed) for tier in table.tiers)
    return Table(tuple(tier for tier in tiers if tier.closed or tier.stages))


def _stage(stage: Stage) -> Stage:
    return tuple(sorted({_entry(entry) for entry in stage}))


def _entry(entry: Entry) -> Entry:
    return replace(entry, verdict=Verdict(entry.verdict), peers=tuple(sorted(set(entry.peers))))
