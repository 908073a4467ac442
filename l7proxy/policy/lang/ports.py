"""Which ports a toPorts item speaks of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from l7proxy.model.verdict import Protocol
from l7proxy.policy.lang.fields import Field, quoted
from l7proxy.policy.rules import PortMatch

MAX_PORTS: Final = 40
"""Cilium's limit for one item."""

ANY: Final = "ANY"
PROTOCOLS: Final[Mapping[str, frozenset[int]]] = {
    "TCP": frozenset({Protocol.TCP.value}),
    "UDP": frozenset({Protocol.UDP.value}),
    "SCTP": frozenset({Protocol.SCTP.value}),
    ANY: frozenset({Protocol.TCP.value, Protocol.UDP.value, Protocol.SCTP.value}),  # never ICMP
}
_LATER: Final = frozenset({"VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH"})
_EVERY: Final = "{ tcp | udp | sctp | vrrp | igmp | gre | ipip | ipv6 | esp | ah | any }"

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_SERVICE: Final = re.compile(r"(?=.{1,15}$)(?=[0-9-]*[A-Za-z])[A-Za-z0-9]+(-[A-Za-z0-9]+)*")
"""An IANA service name (RFC 6335 section 5.1): at least one letter, no hyphen at an end or beside another."""


def ports(field: Field, *, l7: bool) -> tuple[PortMatch, ...]:
    """The `ports` list of one item. `l7`: HTTP rules hang on it, which need TCP and a port that is not "every port"."""
    return tuple(
        _port(item, l7=l7) for item in field.items(most=MAX_PORTS, too_many=f"too many ports, the max is {MAX_PORTS}")
    )


def _port(field: Field, *, l7: bool) -> PortMatch:
    found = field.mapping(("port", "endPort", "protocol"))
    protocol = _protocol(found["protocol"]) if "protocol" in found else ANY
    if "port" not in found or not found["port"].text():
        field.fail("port must be specified")
    number, name = _number_or_name(found["port"])
    end = found["endPort"].number(0, 65535) if "endPort" in found else 0
    if l7 and protocol != "TCP":
        field.fail(f"L7 rules can only apply to TCP (not {protocol}) except for DNS rules")
    if name:
        return PortMatch(PROTOCOLS[protocol], name=name)
    if number == 0:
        if l7:
            field.fail("L7 rules can not be used when a port is 0")
        if end:
            found["endPort"].fail('endPort has no meaning with port "0", which is every port')
        return PortMatch(PROTOCOLS[protocol])
    return PortMatch(PROTOCOLS[protocol], number, max(number, end))  # an end before the start: a single port


def _protocol(field: Field) -> str:
    text = field.text()
    name = text.upper()
    if name in _LATER:
        field.fail(f"protocol {name} is not supported yet", unsupported=True)
    if name and name not in PROTOCOLS:
        field.fail(f"invalid protocol {quoted(text)}, must be {_EVERY}")
    return name or ANY


def _number_or_name(field: Field) -> tuple[int, str]:
    text = field.text()
    if _SERVICE.fullmatch(text):
        return 0, text.lower()
    # Go would read "010" as octal; nobody who writes it means 8.
    if not _NUMBER.fullmatch(text) or int(text) > 65535:
        field.fail(f"unable to parse port: {quoted(text)} is neither a decimal number up to 65535 nor a port name")
    return int(text), ""
