"""The names by which a new process recognises our kernel state, and the vocabulary of the verdict events.

nftables: tables `inet l7proxy` and `bridge l7proxy`. iptables: chains and sets with the prefix `L7P-`. Routing: rules
and routes of protocol 77. Marks: the two bits of `Settings`, always as value/mask. Conntrack: zone 7777. Nothing else
is ever deleted.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

TABLE: Final = "l7proxy"
CHAIN_PREFIX: Final = "L7P-"
ROUTE_PROTOCOL: Final = 77
"""rtm_protocol of our rules and routes: not used by the kernel or in /etc/iproute2/rt_protos."""

CONNTRACK_ZONE: Final = 7777
"""Zone of the original direction of the proxy's own connections (nft(8), ct zone; iptables-extensions(8), CT)."""

LOG_SNAPLEN: Final = 128
"""Bytes of the packet in an event: enough for IPv6 with two extension headers and TCP."""
LOG_QUEUE: Final = 32
"""Most events that the kernel collects before it wakes the reader. A reader may ask for less, as ours does."""


class LogEvent(StrEnum):
    """The verdict or reason that an event reports."""

    ALLOW = "allow"
    STEER = "steer"
    DENY = "deny"
    """A DENY entry covers it."""
    NONE = "none"
    """No entry covers it."""
    SPOOF = "spoof"
    """Address, MAC or interface is not the sender's own."""
    GROUP = "group"
    """Multicast or broadcast from or to a pod under policy: entries cannot name the receivers."""
    LINK_LOCAL = "link-local"
    """IPv6 link-local unicast from or to a pod that is neither neighbour discovery nor group membership."""
    STRAY = "stray"
    """To a pod, but to an address that the pod does not have."""
    UNSERVED = "unserved"
    """Must go to the proxy, but no worker listens."""


PASSED: Final = frozenset((LogEvent.ALLOW, LogEvent.STEER))
UNVERIFIED: Final = frozenset((LogEvent.SPOOF, LogEvent.GROUP, LogEvent.LINK_LOCAL, LogEvent.STRAY))
"""Events of packets whose source address is not verified."""


class LogDirection(StrEnum):
    """The policy direction that gave the verdict."""

    INGRESS = "ingress"
    EGRESS = "egress"


def log_prefix(kind: LogEvent, way: LogDirection, endpoint: int) -> str:
    """At most 33 bytes; xt_NFLOG allows 64. Endpoint 0 means no particular endpoint."""
    return f"l7p:{kind.value}:{way.value}:{endpoint}"


_KINDS: Final = tuple((kind, way) for kind in LogEvent for way in LogDirection)
_ENDPOINT_BITS: Final = 26


def log_code(kind: LogEvent, way: LogDirection, endpoint: int) -> int:
    """The same as a 32-bit number, for counting rules; above the range of identities."""
    return (_KINDS.index((kind, way)) + 1) << _ENDPOINT_BITS | endpoint & (1 << _ENDPOINT_BITS) - 1


def read_code(code: int) -> tuple[LogEvent, LogDirection, int] | None:
    """The parts of one of our codes, or None for any other number."""
    kind = (code >> _ENDPOINT_BITS) - 1
    return (*_KINDS[kind], code & (1 << _ENDPOINT_BITS) - 1) if 0 <= kind < len(_KINDS) else None


def read_prefix(prefix: str) -> tuple[LogEvent, LogDirection, int] | None:
    """The parts of one of our prefixes, or None for any other prefix."""
    match prefix.split(":"):
        case ["l7p", kind, way, endpoint] if endpoint.isascii() and endpoint.isdigit():
            try:
                return LogEvent(kind), LogDirection(way), int(endpoint)
            except ValueError:
                return None
        case _:
            return None
