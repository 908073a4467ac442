"""The names by which a fresh process knows kernel state as ours, and the words of the verdict events.

nftables: tables `inet l7proxy` and `bridge l7proxy`. iptables: chains and sets that begin with `L7P-`. Routing: rules
and routes of protocol 77. Marks: the two bits of `Settings`, always as value/mask. Connection tracking: zone
7777. Nothing else is ever swept.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

TABLE: Final = "l7proxy"
CHAIN_PREFIX: Final = "L7P-"
ROUTE_PROTOCOL: Final = 77
"""rtm_protocol of our rules and routes: outside those of the kernel's list and of /etc/iproute2/rt_protos."""

CONNTRACK_ZONE: Final = 7777
"""Where the proxy's own connections have their original direction (nft(8), ct zone; iptables-extensions(8), CT)."""

LOG_SNAPLEN: Final = 128
"""Bytes of a packet told in an event: IPv6 with two extension headers and TCP fit."""
LOG_QUEUE: Final = 32
"""Events the kernel gathers before it wakes the reader; fewer are flushed by the reader's timeout."""


class LogEvent(StrEnum):
    """What an event says of its packet."""

    ALLOW = "allow"
    STEER = "steer"
    DENY = "deny"
    """An entry says no."""
    NONE = "none"
    """No entry covers it."""
    SPOOF = "spoof"
    """Not from the address, MAC or port that it claims."""
    GROUP = "group"
    """Multicast or broadcast from or to a pod under policy: no entry can name the receivers."""
    LINK_LOCAL = "link-local"
    """IPv6 link-local unicast from or to a pod that is neither neighbour discovery nor group membership."""
    STRAY = "stray"
    """To a pod, for an address that is not the pod's."""
    UNSERVED = "unserved"
    """To be steered, but nobody listens."""


PASSED: Final = frozenset((LogEvent.ALLOW, LogEvent.STEER))
UNVERIFIED: Final = frozenset((LogEvent.SPOOF, LogEvent.GROUP, LogEvent.LINK_LOCAL, LogEvent.STRAY))
"""What is refused before anybody knows that the source address is the sender's."""


class LogDirection(StrEnum):
    """The direction whose policy spoke."""

    INGRESS = "ingress"
    EGRESS = "egress"


def log_prefix(told: LogEvent, way: LogDirection, endpoint: int) -> str:
    """At most 33 bytes, within the 64 of xt_NFLOG. Endpoint 0 is "no particular one"."""
    return f"l7p:{told.value}:{way.value}:{endpoint}"


_KINDS: Final = tuple((told, way) for told in LogEvent for way in LogDirection)
_ENDPOINT_BITS: Final = 26


def log_code(told: LogEvent, way: LogDirection, endpoint: int) -> int:
    """The same as one 32-bit number, for rules that count; above all identities that agents give."""
    return (_KINDS.index((told, way)) + 1) << _ENDPOINT_BITS | endpoint & (1 << _ENDPOINT_BITS) - 1


def read_code(code: int) -> tuple[LogEvent, LogDirection, int] | None:
    """The parts of a number of ours, or None when it is none."""
    kind = (code >> _ENDPOINT_BITS) - 1
    return (*_KINDS[kind], code & (1 << _ENDPOINT_BITS) - 1) if 0 <= kind < len(_KINDS) else None


def read_prefix(prefix: str) -> tuple[LogEvent, LogDirection, int] | None:
    """The parts of a prefix of ours, or None when it is somebody else's."""
    match prefix.split(":"):
        case ["l7p", told, way, endpoint] if endpoint.isascii() and endpoint.isdigit():
            try:
                return LogEvent(told), LogDirection(way), int(endpoint)
            except ValueError:
                return None
        case _:
            return None
