"""The names and numbers of Hubble's flow API that more than one module needs.

Names are the API's own (github.com/cilium/cilium, api/v1/flow/flow.proto); texts are those that the Hubble CLI prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final


class EventType(IntEnum):
    """`event_type.type`: the monitor's message types."""

    DROP = 1
    DEBUG = 2
    CAPTURE = 3
    TRACE = 4
    POLICY_VERDICT = 5
    TRACE_SOCK = 7
    L7 = 129
    AGENT = 130


EVENT_NAMES: Final[Mapping[str, int]] = {kind.name.lower().replace("_", "-"): kind.value for kind in EventType}
"""As spelled in `--type`: drop, policy-verdict, l7…"""

VERDICTS: Final = (
    "VERDICT_UNKNOWN",
    "FORWARDED",
    "DROPPED",
    "ERROR",
    "AUDIT",
    "REDIRECTED",
    "TRACED",
    "TRANSLATED",
)
DIRECTIONS: Final = ("TRAFFIC_DIRECTION_UNKNOWN", "INGRESS", "EGRESS")
FLOW_TYPES: Final = ("UNKNOWN_TYPE", "L3_L4", "L7", "SOCK")
L7_TYPES: Final = ("UNKNOWN_L7_TYPE", "REQUEST", "RESPONSE", "SAMPLE")
IP_VERSIONS: Final = ("IP_NOT_USED", "IPv4", "IPv6")
LOST_SOURCES: Final = (
    "UNKNOWN_LOST_EVENT_SOURCE",
    "PERF_EVENT_RING_BUFFER",
    "OBSERVER_EVENTS_QUEUE",
    "HUBBLE_RING_BUFFER",
)

TRACE_POINTS: Final = (
    "to-endpoint",
    "to-proxy",
    "to-host",
    "to-stack",
    "to-overlay",
    "from-endpoint",
    "from-proxy",
    "from-host",
    "from-stack",
    "from-overlay",
    "from-network",
    "to-network",
    "from-crypto",
    "to-crypto",
)
"""Indexed by `event_type.sub_type` of a trace. `trace_observation_point` has the same words, as TO_ENDPOINT."""
TO_ENDPOINT, TO_PROXY, TO_STACK = (TRACE_POINTS.index(point) for point in ("to-endpoint", "to-proxy", "to-stack"))

MATCH_TYPES: Final = ("none", "L3-Only", "L3-L4", "L4-Only", "all", "L3-Proto", "Proto-Only")
"""Indexed by `policy_match_type`."""

DROP_TEXTS: Final[Mapping[int, str]] = {
    130: "Invalid source mac",
    131: "Invalid destination mac",
    132: "Invalid source ip",
    133: "Policy denied",
    134: "Invalid packet",
    139: "Unsupported L3 protocol",
    142: "Unknown L4 protocol",
    151: "Stale or unroutable IP",
    155: "CT: Map insertion failed",
    158: "Service backend not found",
    171: "Invalid identity",
    180: "Proxy redirection not supported for protocol",
    181: "Policy denied by denylist",
    189: "Authentication required",
    196: "TTL exceeded",
    198: "Rate limited",
    203: "Endpoint policy program not available",
    205: "Punt to proxy",
}
"""Drop reason → text of the drop event. Others are shown by number."""

RESERVED_NAMES: Final = (
    "unknown",
    "host",
    "world",
    "unmanaged",
    "health",
    "init",
    "remote-node",
    "kube-apiserver",
    "ingress",
    "world-ipv4",
    "world-ipv6",
)
"""Indexed by identity number."""

TCP_FLAGS: Final = (
    ("SYN", 0x02),
    ("ACK", 0x10),
    ("RST", 0x04),
    ("FIN", 0x01),
    ("PSH", 0x08),
    ("URG", 0x20),
    ("ECE", 0x40),
    ("CWR", 0x80),
    ("NS", 0x100),
)
"""In the order of a summary, with their bit in the TCP header (RFC 9293 section 3.1)."""

ICMPV4_TYPES: Final[Mapping[int, str]] = {
    0: "EchoReply",
    3: "DestinationUnreachable",
    4: "SourceQuench",
    5: "Redirect",
    8: "EchoRequest",
    9: "RouterAdvertisement",
    10: "RouterSolicitation",
    11: "TimeExceeded",
    12: "ParameterProblem",
    13: "TimestampRequest",
    14: "TimestampReply",
    15: "InfoRequest",
    16: "InfoReply",
    17: "AddressMaskRequest",
    18: "AddressMaskReply",
}
ICMPV4_CODES: Final[Mapping[int, tuple[str, ...]]] = {
    3: (
        "Net",
        "Host",
        "Protocol",
        "Port",
        "FragmentationNeeded",
        "SourceRoutingFailed",
        "NetUnknown",
        "HostUnknown",
        "SourceIsolated",
        "NetAdminProhibited",
        "HostAdminProhibited",
        "NetTOS",
        "HostTOS",
        "CommAdminProhibited",
        "HostPrecedence",
        "PrecedenceCutoff",
    ),
    5: ("Net", "Host", "TOS+Net", "TOS+Host"),
    11: ("TTLExceeded", "FragmentReassemblyTimeExceeded"),
    12: ("PointerIndicatesError", "MissingOption", "BadLength"),
}
"""Of the types whose code has a meaning, indexed by code."""
ICMPV6_TYPES: Final[Mapping[int, str]] = {
    1: "DestinationUnreachable",
    2: "PacketTooBig",
    3: "TimeExceeded",
    4: "ParameterProblem",
    128: "EchoRequest",
    129: "EchoReply",
    133: "RouterSolicitation",
    134: "RouterAdvertisement",
    135: "NeighborSolicitation",
    136: "NeighborAdvertisement",
    137: "Redirect",
}
ICMPV6_CODES: Final[Mapping[int, tuple[str, ...]]] = {
    1: (
        "NoRouteToDst",
        "AdminProhibited",
        "BeyondScopeOfSrc",
        "AddressUnreachable",
        "PortUnreachable",
        "SrcAddressFailedPolicy",
        "RejectRouteToDst",
    ),
    3: ("HopLimitExceeded", "FragmentReassemblyTimeExceeded"),
    4: ("ErroneousHeaderField", "UnrecognizedNextHeader", "UnrecognizedNextHeader"),
}


def icmp_text(version: int, kind: int, code: int) -> str:
    """Type and code of an ICMP message as in a summary: `EchoRequest`, `DestinationUnreachable(Port)`, `42(0)`."""
    types, codes = (ICMPV4_TYPES, ICMPV4_CODES) if version == 4 else (ICMPV6_TYPES, ICMPV6_CODES)
    name, known = types.get(kind), codes.get(kind, ())
    if name is None:
        return f"{kind}({code})"
    if code < len(known):
        return f"{name}({known[code]})"
    return f"{name}(Code: {code})" if known or code else name
