"""Parses protocol and ports of a Calico rule: protocol, notProtocol, icmp, notICMP, ports and notPorts.

A `not` field is expanded to the numbers that it leaves. A port name means the numbers that the destination pods give
it; its negation cannot be expressed, so it is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from l7proxy.model.verdict import Protocol
from l7proxy.policy.lang.fields import Field, quoted
from l7proxy.policy.rules import PortMatch

MAX_PORTS: Final = 50
FIELDS: Final = ("protocol", "notProtocol", "icmp", "notICMP")

_NAMES: Final[Mapping[str, int]] = {
    "TCP": Protocol.TCP.value,
    "UDP": Protocol.UDP.value,
    "ICMP": Protocol.ICMP.value,
    "ICMPv6": Protocol.ICMPV6.value,
    "SCTP": Protocol.SCTP.value,
    "UDPLite": 136,
}
_WITH_PORTS: Final = frozenset((Protocol.TCP.value, Protocol.UDP.value, Protocol.SCTP.value))
_IP_VERSION: Final[Mapping[int, int]] = {Protocol.ICMP.value: 4, Protocol.ICMPV6.value: 6}
_ICMP: Final = frozenset(_IP_VERSION)
_EVERY: Final = frozenset(range(1, 256))
"""Without 0, which is not a transport protocol, and means every protocol to iptables."""
_NUMBER: Final = re.compile(r"[0-9]{1,5}")
_RANGE: Final = re.compile(r"([0-9]{1,5}):([0-9]{1,5})")
_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_LAST: Final = 65535

Span = tuple[int, int]
"""First and last port."""


def matches(rule: Mapping[str, Field], destination: Mapping[str, Field]) -> tuple[PortMatch, ...] | None:
    """The ports that a rule matches. None is every protocol, () is none."""
    protocols = _protocols(rule)
    wanted, unwanted = (_ports(destination[name]) if name in destination else [] for name in ("ports", "notPorts"))
    found = tuple(_icmp(rule, protocols)) if "icmp" in rule or "notICMP" in rule else None
    if wanted or unwanted:
        return tuple(_with_ports(destination["ports" if wanted else "notPorts"], protocols, wanted, unwanted))
    if found is not None:
        return found
    return None if protocols is None else (PortMatch(protocols),)


def check_version(rule: Mapping[str, Field], version: int | None) -> None:
    """Each ICMP protocol belongs to one IP version."""
    for name in ("protocol", "notProtocol"):
        wanted = _IP_VERSION.get(_protocol(rule[name])) if name in rule else None
        if wanted is not None and version not in (None, wanted):
            rule["ipVersion"].fail(f"must be {wanted} with {name} {rule[name].value}")


def _protocols(rule: Mapping[str, Field]) -> frozenset[int] | None:
    if "protocol" not in rule and "notProtocol" not in rule:
        return None
    found = frozenset((_protocol(rule["protocol"]),)) if "protocol" in rule else _EVERY
    return found - {_protocol(rule["notProtocol"])} if "notProtocol" in rule else found


def _protocol(field: Field) -> int:
    if isinstance(field.value, int):
        return field.number(1, 255)
    text = field.text()
    if text in _NAMES:
        return _NAMES[text]
    if _NUMBER.fullmatch(text) and 1 <= int(text) <= 255:
        return int(text)
    return field.fail(f"{quoted(text)} is not a protocol: must be {', '.join(_NAMES)} or a number from 1 to 255")


def _ports(field: Field) -> list[Span | str]:
    return [_port(item) for item in field.items(most=MAX_PORTS, too_many=f"too many ports, the max is {MAX_PORTS}")]


def _port(field: Field) -> Span | str:
    if isinstance(field.value, int):
        number = field.number(0, _LAST)
        return number, number
    text = field.text()
    span = _RANGE.fullmatch(text) or (_NUMBER.fullmatch(text) and re.fullmatch(r"(.*)()", text))
    if not span:
        if not _NAME.fullmatch(text):
            field.fail(f"{quoted(text)} is not a port: must be a number, a range as 1000:2000, or a name")
        return text
    first, last = int(span[1]), int(span[2] or span[1])
    if last > _LAST:
        field.fail(f"{quoted(text)} is not a port: the maximum is {_LAST}")
    if last < first:
        field.fail(f"the range {quoted(text)} ends before it starts")
    return first, last


def _with_ports(
    place: Field, protocols: frozenset[int] | None, wanted: list[Span | str], unwanted: list[Span | str]
) -> Iterator[PortMatch]:
    numbers = [each for each in (*wanted, *unwanted) if isinstance(each, tuple)]
    if (numbers or protocols is not None) and not (protocols and protocols <= _WITH_PORTS):
        place.fail("rules with numeric port or port range must set protocol to TCP or UDP or SCTP")
    if any(isinstance(each, str) for each in unwanted):
        place.fail("a port name in notPorts is not supported yet", unsupported=True)
    spans = [each for each in wanted if isinstance(each, tuple)]
    names = [each for each in wanted if isinstance(each, str)]
    if names and unwanted:
        place.fail("a port name in ports together with notPorts is not supported yet", unsupported=True)
    chosen = protocols if protocols is not None else _WITH_PORTS
    holes = [each for each in unwanted if isinstance(each, tuple)]
    for first, last in _without(spans if wanted else [(0, _LAST)], holes):
        yield PortMatch(chosen, first, last)
    for name in names:
        yield PortMatch(chosen, name=name)


def _without(spans: Iterable[Span], holes: Iterable[Span]) -> list[Span]:
    """The spans without the holes."""
    left = list(spans)
    for low, high in holes:
        left = [
            part
            for first, last in left
            for part in ((first, min(last, low - 1)), (max(first, high + 1), last))
            if part[0] <= part[1]
        ]
    return left


def _icmp(rule: Mapping[str, Field], protocols: frozenset[int] | None) -> Iterator[PortMatch]:
    """The number of an ICMP message is type · 256 + code."""
    if not protocols or not protocols <= _ICMP:
        rule["icmp" if "icmp" in rule else "notICMP"].fail("protocol must be ICMP or ICMPv6")
    spans = [_message(rule["icmp"])] if "icmp" in rule else [(0, _LAST)]
    holes = [_message(rule["notICMP"])] if "notICMP" in rule else []
    for first, last in _without(spans, holes):
        yield PortMatch(protocols, first, last)


def _message(field: Field) -> Span:
    found = field.mapping(("type", "code"))
    if "type" not in found:
        if "code" in found:
            field.fail("code requires a type")
        return 0, _LAST
    kind = found["type"].number(0, 254) << 8
    if "code" not in found:
        return kind, kind | 255
    code = found["code"].number(0, 255)
    return kind | code, kind | code
