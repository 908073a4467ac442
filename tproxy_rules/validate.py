"""Refuses an invalid desired state, with the name of the field, before any tool is started.

Every backend calls `checked` first, so that an invalid state fails alike everywhere and the old state stays active.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Final

from tproxy_rules.backend import KernelError
from tproxy_rules.desired import (
    MAX_TIERS,
    Bridge,
    Desired,
    Endpoint,
    Entry,
    Frontend,
    Port,
    Prefixes,
    Settings,
    Table,
    Verdict,
)
from tproxy_rules.digest import canonical, canonical_address, canonical_entry, canonical_identities, network, normalise

TCP, UDP, SCTP = 6, 17, 132
PROTOCOL_NAMES: Final = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
"""As nftables and iptables write them."""
REDIRECTABLE: Final = frozenset({TCP, UDP})
"""The protocols that TPROXY supports."""
ICMP: Final = frozenset({1, 58})
"""Type and code, the first 16 bits of the message, are used as the port."""
WITH_PORTS: Final = frozenset({TCP, UDP, SCTP}) | ICMP
ANY_PROTOCOL: Final = -1
MAX_PORT: Final = 65535
MAX_NUMBER: Final = 0xFFFF_FFFF

# A trailing * is a wildcard in nft, + in iptables, and quotes end a string: only plain names are allowed.
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.:@=-]{1,15}")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


Examined = tuple[str, Table]
"""The problem of a table, or "", and its canonical form."""


def examined(table: Table) -> Examined:
    """Validate a table. Pure: a caller may cache the result as long as the table."""
    found = canonical(table)
    if len(found.tiers) > MAX_TIERS:
        return f"tiers: {len(found.tiers)} exceeds the limit of {MAX_TIERS}", table
    if not found.governed and not _refuses_only(found):
        return (
            "tiers: without a policy only deny entries for every peer and protocols other than TCP are allowed",
            table,
        )
    if not any(True for entry in found.entries for _ in _entry(entry)):
        return "", found
    return next(f"{at}: {problem}" for at, entry in _places(table) for problem in _entry(canonical_entry(entry))), table


def _refuses_only(table: Table) -> bool:
    return not any(tier.closed for tier in table.tiers) and all(
        entry.verdict is Verdict.DENY and entry.any_peer and entry.protocol not in (ANY_PROTOCOL, TCP)
        for entry in table.entries
    )


def examined_identities(identities: Prefixes) -> tuple[str, Prefixes]:
    """Validate identities; same result as `examined`."""
    problem = next(_identities(identities), "")
    return (problem, identities) if problem else ("", canonical_identities(identities))


def checked(
    desired: Desired,
    examine: Callable[[Table], Examined] = examined,
    look_up: Callable[[Prefixes], tuple[str, Prefixes]] = examined_identities,
) -> Desired:
    """The state in canonical form, or KernelError with the first problem.

    `examine` and `look_up` are `examined` and `examined_identities`, or caches of them.
    """
    for problem in _problems(desired, examine, look_up):
        raise KernelError(f"invalid desired state: {problem}")
    return normalise(desired, lambda table: examine(table)[1], lambda identities: look_up(identities)[1])


def _problems(
    desired: Desired,
    examine: Callable[[Table], Examined],
    look_up: Callable[[Prefixes], tuple[str, Prefixes]],
) -> Iterator[str]:
    yield from _settings(desired.settings)
    if problem := look_up(desired.identities)[0]:
        yield problem
    yield from _bridges(desired.bridges)
    for name in desired.other_ports:
        yield from _interface(name, "other_ports")
    for prefix in desired.held:
        try:
            ip_network(prefix)
        except ValueError as error:
            yield f"held: {error}"
    bridges = {bridge.name for bridge in desired.bridges}
    for endpoint in desired.endpoints:
        for problem in _endpoint(endpoint, bridges, examine):
            yield f"endpoint {endpoint.id}: {problem}"
    yield from _shared(desired.endpoints)
    for frontend in desired.frontends:
        yield from _frontend(frontend)
    if not 0 <= desired.host_identity <= MAX_NUMBER:
        yield f"host_identity {desired.host_identity} must be a 32-bit number"


def _settings(settings: Settings) -> Iterator[str]:
    for name in ("mark_proxy", "mark_upstream"):
        mark = getattr(settings, name)
        if not 0 < mark <= MAX_NUMBER or mark & (mark - 1):
            yield f"settings.{name}: {mark:#x} must be a single bit"
    if settings.mark_proxy == settings.mark_upstream:
        yield "settings.mark_upstream must differ from mark_proxy"
    for name, least, most in (
        ("nflog_group", 1, MAX_PORT),
        ("log_rate", 1, 1_000_000),
        ("route_table", 1, MAX_NUMBER),
        ("rule_priority", 3, 32765),
    ):
        value = getattr(settings, name)
        if not least <= value <= most:
            yield f"settings.{name}: {value} must be between {least} and {most}"
    for protocol, port in settings.listeners:
        if protocol not in REDIRECTABLE:
            yield f"settings.listeners: protocol {protocol} cannot be redirected, only TCP and UDP can"
        if not 1 <= port <= MAX_PORT:
            yield f"settings.listeners: port {port} must be between 1 and {MAX_PORT}"
    if len(settings.redirected) < len(set(settings.listeners)):
        yield "settings.listeners: a protocol has two ports"
    if settings.route_table in (253, 254, 255):
        yield f"settings.route_table: {settings.route_table} is reserved by the kernel"
    if not settings.families or not set(settings.families) <= {4, 6}:
        yield f"settings.families: {settings.families!r} must contain only 4 and 6"


def _identities(identities: Prefixes) -> Iterator[str]:
    """Optimised for many valid identities."""
    try:
        texts = [network(prefix) for prefix, _ in identities]
    except ValueError as error:
        yield f"identities: {error}"
        return
    if len(set(texts)) < len(texts):
        seen: set[str] = set()
        for (prefix, _), text in zip(identities, texts, strict=True):
            if text in seen:
                yield f"identities: duplicate {prefix}"
            seen.add(text)
    numbers = [number for _, number in identities]
    if numbers and not 0 <= min(numbers) <= max(numbers) <= MAX_NUMBER:
        prefix, number = next(one for one in identities if not 0 <= one[1] <= MAX_NUMBER)
        yield f"identities: {number} of {prefix} must be a 32-bit number"


def _bridges(bridges: tuple[Bridge, ...]) -> Iterator[str]:
    if len({bridge.name for bridge in bridges}) != len(bridges):
        yield "bridges: duplicate name"
    for bridge in bridges:
        yield from _interface(bridge.name, "bridges")
        if not _MAC.fullmatch(bridge.mac):
            yield f"bridges: {bridge.name}: {bridge.mac!r} must be a MAC address in lower case"
        for name in (*bridge.ports, *bridge.uplinks):
            yield from _interface(name, f"bridges: {bridge.name}")
        for name in sorted(set(bridge.uplinks) - set(bridge.ports)):
            yield f"bridges: {bridge.name}: the uplink {name} is not one of its ports"


def _interface(name: str, at: str) -> Iterator[str]:
    if not _INTERFACE.fullmatch(name):
        yield f"{at}: {name!r} is not a valid interface name"


def _endpoint(endpoint: Endpoint, bridges: set[str], examine: Callable[[Table], Examined]) -> Iterator[str]:
    if not 1 <= endpoint.id <= MAX_NUMBER:
        yield "its id must be between 1 and 2^32-1"
    for address in endpoint.addresses:
        if problem := _unfit(address):
            yield f"addresses: {problem}"
    if endpoint.port:
        yield from _port(endpoint.port, bridges)
    for way, table in (("ingress", endpoint.ingress), ("egress", endpoint.egress)):
        if table is not None and (problem := examine(table)[0]):
            yield f"{way}.{problem}"
    if endpoint.ingress is not None and not endpoint.ingress.governed:
        yield "ingress: a table without a policy is allowed only for egress"


@lru_cache(maxsize=1 << 12)
def _unfit(address: str) -> str:
    """Why the address is invalid for a pod, or ""."""
    try:
        parsed = ip_address(address)
    except ValueError as error:
        return str(error)
    nobodys = parsed.is_unspecified or parsed.is_multicast or parsed.is_loopback
    return f"{address} cannot be the address of a pod" if nobodys else ""


def _places(table: Table) -> Iterator[tuple[str, Entry]]:
    for t, tier in enumerate(table.tiers):
        for s, stage in enumerate(tier.stages):
            for e, entry in enumerate(stage):
                yield f"tiers[{t}].stages[{s}][{e}]", entry


def _port(port: Port, bridges: set[str]) -> Iterator[str]:
    yield from _interface(port.interface, "port.interface")
    if port.bridge and port.bridge not in bridges:
        yield f"port.bridge: {port.bridge!r} is not in bridges"
    if port.bridge and not port.mac:
        yield "port.mac is required for a bridge port"
    if port.mac and not _MAC.fullmatch(port.mac):
        yield f"port.mac: {port.mac!r} must be a MAC address in lower case"


def _entry(entry: Entry) -> Iterator[str]:
    """Problems of a canonical entry, whose peers ascend."""
    if not ANY_PROTOCOL <= entry.protocol <= 255:
        yield f"protocol {entry.protocol} must be between -1 and 255"
    if not 0 <= entry.first <= entry.last <= MAX_PORT:
        yield f"ports {entry.first}–{entry.last} must be a range within 0–65535"
    if entry.protocol not in WITH_PORTS and (entry.first, entry.last) != (0, MAX_PORT):
        yield f"protocol {entry.protocol} has no ports: the range must be 0–65535"
    if entry.verdict is Verdict.STEER and entry.protocol not in REDIRECTABLE:
        yield f"only TCP and UDP can be redirected, not protocol {entry.protocol}"
    if entry.any_peer and entry.peers:
        yield "peers must be empty if any_peer is set"
    for peer in entry.peers[:1] + entry.peers[-1:]:
        if not 0 < peer <= MAX_NUMBER:
            yield f"peer {peer} must be between 1 and 2^32-1"


def _shared(endpoints: tuple[Endpoint, ...]) -> Iterator[str]:
    ids: set[int] = set()
    owners: dict[str, int] = {}
    interfaces: dict[str, int] = {}
    for endpoint in endpoints:
        if endpoint.id in ids:
            yield f"duplicate endpoint {endpoint.id}"
        ids.add(endpoint.id)
        for address in endpoint.addresses:
            first = owners.setdefault(canonical_address(address), endpoint.id)
            if first != endpoint.id:
                yield f"address {address} belongs to endpoints {first} and {endpoint.id}"
        if endpoint.port and interfaces.setdefault(endpoint.port.interface, endpoint.id) != endpoint.id:
            yield f"interface {endpoint.port.interface} belongs to two endpoints, the second is {endpoint.id}"


def _frontend(frontend: Frontend) -> Iterator[str]:
    try:
        ip_address(frontend.address)
    except ValueError as error:
        yield f"frontends: {error}"
    if not 0 <= frontend.protocol <= 255 or not 0 <= frontend.port <= MAX_PORT:
        yield f"frontends: {frontend.address}: protocol {frontend.protocol}, port {frontend.port} are out of range"
    if frontend.steer and frontend.protocol not in REDIRECTABLE:
        yield f"frontends: {frontend.address}: only TCP and UDP can be redirected, not protocol {frontend.protocol}"
