"""Parses `icmps`: messages by type, as a number or a name. The code is not matched (Cilium semantics).

For ICMP the first 16 bits of the header, type and code, are used like a TCP port (`rules.PortMatch`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from l7proxy.model.verdict import Protocol
from l7proxy.policy.lang.fields import Field, kind, quoted
from l7proxy.policy.rules import PortMatch

MAX_FIELDS: Final = 40
"""Cilium's limit for one item."""

IPV4: Final = "IPv4"
IPV6: Final = "IPv6"
_PROTOCOLS: Final[Mapping[str, Protocol]] = {IPV4: Protocol.ICMP, IPV6: Protocol.ICMPV6}

# IANA "ICMP Type Numbers" and "ICMPv6 Parameters", in Cilium's spelling.
_NAMES: Final[Mapping[str, Mapping[str, int]]] = {
    IPV4: {
        "EchoReply": 0,
        "DestinationUnreachable": 3,
        "Redirect": 5,
        "Echo": 8,
        "EchoRequest": 8,
        "RouterAdvertisement": 9,
        "RouterSelection": 10,
        "TimeExceeded": 11,
        "ParameterProblem": 12,
        "Timestamp": 13,
        "TimestampReply": 14,
        "Photuris": 40,
        "ExtendedEchoRequest": 42,
        "ExtendedEchoReply": 43,
    },
    IPV6: {
        "DestinationUnreachable": 1,
        "PacketTooBig": 2,
        "TimeExceeded": 3,
        "ParameterProblem": 4,
        "EchoRequest": 128,
        "EchoReply": 129,
        "MulticastListenerQuery": 130,
        "MulticastListenerReport": 131,
        "MulticastListenerDone": 132,
        "RouterSolicitation": 133,
        "RouterAdvertisement": 134,
        "NeighborSolicitation": 135,
        "NeighborAdvertisement": 136,
        "RedirectMessage": 137,
        "RouterRenumbering": 138,
        "ICMPNodeInformationQuery": 139,
        "ICMPNodeInformationResponse": 140,
        "InverseNeighborDiscoverySolicitation": 141,
        "InverseNeighborDiscoveryAdvertisement": 142,
        "HomeAgentAddressDiscoveryRequest": 144,
        "HomeAgentAddressDiscoveryReply": 145,
        "MobilePrefixSolicitation": 146,
        "MobilePrefixAdvertisement": 147,
        "DuplicateAddressRequestCodeSuffix": 157,
        "DuplicateAddressConfirmationCodeSuffix": 158,
        "ExtendedEchoRequest": 160,
        "ExtendedEchoReply": 161,
    },
}


def messages(item: Field) -> tuple[PortMatch, ...]:
    """One item of `icmps`. Without fields it matches nothing."""
    found = item.mapping(("fields",))
    if "fields" not in found:
        return ()
    fields = found["fields"].items(most=MAX_FIELDS, too_many=f"too many types, the max is {MAX_FIELDS}")
    return tuple(dict.fromkeys(_message(field) for field in fields))


def of_type(number: int, family: str = IPV4) -> PortMatch:
    """Messages of one type, with any code."""
    return PortMatch(frozenset({int(_PROTOCOLS[family])}), number << 8, number << 8 | 0xFF)


def _message(field: Field) -> PortMatch:
    found = field.mapping(("family", "type"))
    family = (found["family"].text() or IPV4) if "family" in found else IPV4
    if family not in _PROTOCOLS:
        found["family"].fail(f"wrong family: {quoted(family)[1:-1]}")
    if "type" not in found:
        field.fail("type is required")
    return of_type(_type(found["type"], family), family)


def _type(field: Field, family: str) -> int:
    """A number from 0 to 255, also as text, or a name of the family."""
    text = field.value
    if not isinstance(text, str):
        if not isinstance(text, int) or isinstance(text, bool):
            field.fail(f"must be a number or a name, not {kind(text)}")
        return field.number(0, 255)
    if text.isascii() and text.isdigit():
        return Field(int(text) if len(text) <= 3 else -1, field.at).number(0, 255)
    if text not in _NAMES[family]:
        field.fail(f"ICMP type {quoted(text)[1:-1]} not found in {family}")
    return _NAMES[family][text]
