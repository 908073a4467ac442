"""Parses the ports of a toPorts item."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Final

from l7proxy.model.verdict import Protocol
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, quoted
from l7proxy.policy.rules import DnsRules, HttpRules, L7Rules, PortMatch

MAX_PORTS: Final = 40
"""Cilium's limit for one item."""

ANY: Final = "ANY"
PROTOCOLS: Final[Mapping[str, frozenset[int]]] = {
    "TCP": frozenset({Protocol.TCP.value}),
    "UDP": frozenset({Protocol.UDP.value}),
    "SCTP": frozenset({Protocol.SCTP.value}),
    ANY: frozenset({Protocol.TCP.value, Protocol.UDP.value, Protocol.SCTP.value}),  # never ICMP
}
EXTENDED: Final[Mapping[str, int]] = {"VRRP": 112, "IGMP": 2, "GRE": 47, "IPIP": 4, "IPV6": 41, "ESP": 50, "AH": 51}
"""IANA numbers of the protocols without ports."""
_EVERY: Final = "{ tcp | udp | sctp | vrrp | igmp | gre | ipip | ipv6 | esp | ah | any }"

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_OCTAL: Final = re.compile(r"0[0-7]{1,3}")
_SERVICE: Final = re.compile(r"(?=.{1,15}$)(?=[0-9-]*[A-Za-z])[A-Za-z0-9]+(-[A-Za-z0-9]+)*")
"""An IANA service name (RFC 6335 section 5.1): at least one letter, no hyphen at an end or next to another."""


def ports(field: Field, document: Document, *, l7: L7Rules | None) -> tuple[PortMatch, ...]:
    """The `ports` list of one item.

    `l7` are its L7 rules: HTTP needs TCP, DNS excludes ranges, and both exclude "every port".
    """
    too_many = f"too many ports, the max is {MAX_PORTS}"
    return tuple(field.each(partial(_port, document=document, l7=l7), most=MAX_PORTS, too_many=too_many))


def _port(field: Field, document: Document, *, l7: L7Rules | None) -> PortMatch:
    found = field.mapping(("port", "endPort", "protocol"))
    protocol = document.part(partial(_protocol, found["protocol"]), "TCP") if "protocol" in found else ANY
    text = found["port"].text() if "port" in found else ""
    end = found["endPort"].number(0, 65535) if "endPort" in found else 0
    if not text and not document.options.extended_protocols:
        field.fail("port must be specified")
    if protocol in EXTENDED:
        return _without_ports(field, protocol, text, document)
    number, name = _number_or_name(found["port"], document) if text else (0, "")
    if isinstance(l7, DnsRules) and not name and end > number:
        field.fail("DNS rules do not support port ranges")
    if isinstance(l7, HttpRules) and protocol != "TCP":
        field.fail(f"L7 rules can only apply to TCP (not {protocol}) except for DNS rules")
    if name:
        return PortMatch(PROTOCOLS[protocol], name=name)
    if number == 0:
        if l7 is not None:
            field.fail("L7 rules can not be used when a port is 0")
        if end:
            found["endPort"].fail('endPort has no effect with port "0", which matches every port')
        return PortMatch(PROTOCOLS[protocol])
    if 0 < end < number:
        document.note(found["endPort"], f"is less than port, so this matches only port {number}")
    return PortMatch(PROTOCOLS[protocol], number, max(number, end))


def _without_ports(field: Field, protocol: str, port: str, document: Document) -> PortMatch:
    if port not in ("", "0"):
        field.fail("port must be empty or 0")
    if not document.options.extended_protocols:
        what = f"protocol {protocol} can only be used when extended IP protocols are enabled"
        field.fail(what, unsupported=True)
    return PortMatch(frozenset({EXTENDED[protocol]}))


def _protocol(field: Field) -> str:
    text = field.text()
    name = text.upper()
    if name and name not in PROTOCOLS and name not in EXTENDED:
        field.fail(f"invalid protocol {quoted(text)}, must be {_EVERY}")
    return name or ANY


def _number_or_name(field: Field, document: Document) -> tuple[int, str]:
    text = field.text()
    if _SERVICE.fullmatch(text):
        return 0, text.lower()
    if _OCTAL.fullmatch(text):
        document.note(field, f"is octal because of its leading zero: this is port {int(text, 8)}")
        return int(text, 8), ""
    if not _NUMBER.fullmatch(text) or int(text) > 65535:
        field.fail(f"unable to parse port: {quoted(text)} is neither a number up to 65535 nor a port name")
    return int(text), ""
