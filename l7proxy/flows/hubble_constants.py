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

DROP_REASONS: Final[Mapping[str, int]] = {
    "DROP_REASON_UNKNOWN": 0,
    "INVALID_SOURCE_MAC": 130,
    "INVALID_DESTINATION_MAC": 131,
    "INVALID_SOURCE_IP": 132,
    "POLICY_DENIED": 133,
    "INVALID_PACKET_DROPPED": 134,
    "CT_TRUNCATED_OR_INVALID_HEADER": 135,
    "CT_MISSING_TCP_ACK_FLAG": 136,
    "CT_UNKNOWN_L4_PROTOCOL": 137,
    "CT_CANNOT_CREATE_ENTRY_FROM_PACKET": 138,
    "UNSUPPORTED_L3_PROTOCOL": 139,
    "MISSED_TAIL_CALL": 140,
    "ERROR_WRITING_TO_PACKET": 141,
    "UNKNOWN_L4_PROTOCOL": 142,
    "UNKNOWN_ICMPV4_CODE": 143,
    "UNKNOWN_ICMPV4_TYPE": 144,
    "UNKNOWN_ICMPV6_CODE": 145,
    "UNKNOWN_ICMPV6_TYPE": 146,
    "ERROR_RETRIEVING_TUNNEL_KEY": 147,
    "ERROR_RETRIEVING_TUNNEL_OPTIONS": 148,
    "INVALID_GENEVE_OPTION": 149,
    "UNKNOWN_L3_TARGET_ADDRESS": 150,
    "STALE_OR_UNROUTABLE_IP": 151,
    "NO_MATCHING_LOCAL_CONTAINER_FOUND": 152,
    "ERROR_WHILE_CORRECTING_L3_CHECKSUM": 153,
    "ERROR_WHILE_CORRECTING_L4_CHECKSUM": 154,
    "CT_MAP_INSERTION_FAILED": 155,
    "INVALID_IPV6_EXTENSION_HEADER": 156,
    "IP_FRAGMENTATION_NOT_SUPPORTED": 157,
    "SERVICE_BACKEND_NOT_FOUND": 158,
    "NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT": 160,
    "FAILED_TO_INSERT_INTO_PROXYMAP": 161,
    "REACHED_EDT_RATE_LIMITING_DROP_HORIZON": 162,
    "UNKNOWN_CONNECTION_TRACKING_STATE": 163,
    "LOCAL_HOST_IS_UNREACHABLE": 164,
    "NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION": 165,
    "UNSUPPORTED_L2_PROTOCOL": 166,
    "NO_MAPPING_FOR_NAT_MASQUERADE": 167,
    "UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE": 168,
    "FIB_LOOKUP_FAILED": 169,
    "ENCAPSULATION_TRAFFIC_IS_PROHIBITED": 170,
    "INVALID_IDENTITY": 171,
    "UNKNOWN_SENDER": 172,
    "NAT_NOT_NEEDED": 173,
    "IS_A_CLUSTERIP": 174,
    "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND": 175,
    "FORBIDDEN_ICMPV6_MESSAGE": 176,
    "DENIED_BY_LB_SRC_RANGE_CHECK": 177,
    "SOCKET_LOOKUP_FAILED": 178,
    "SOCKET_ASSIGN_FAILED": 179,
    "PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL": 180,
    "POLICY_DENY": 181,
    "VLAN_FILTERED": 182,
    "INVALID_VNI": 183,
    "INVALID_TC_BUFFER": 184,
    "NO_SID": 185,
    "MISSING_SRV6_STATE": 186,
    "NAT46": 187,
    "NAT64": 188,
    "AUTH_REQUIRED": 189,
    "CT_NO_MAP_FOUND": 190,
    "SNAT_NO_MAP_FOUND": 191,
    "INVALID_CLUSTER_ID": 192,
    "UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP": 193,
    "NO_EGRESS_GATEWAY": 194,
    "UNENCRYPTED_TRAFFIC": 195,
    "TTL_EXCEEDED": 196,
    "NO_NODE_ID": 197,
    "DROP_RATE_LIMITED": 198,
    "IGMP_HANDLED": 199,
    "IGMP_SUBSCRIBED": 200,
    "MULTICAST_HANDLED": 201,
    "DROP_HOST_NOT_READY": 202,
    "DROP_EP_NOT_READY": 203,
    "DROP_NO_EGRESS_IP": 204,
    "DROP_PUNT_PROXY": 205,
}
"""`drop_reason_desc` → its number, which is also the `sub_type` of a drop."""

DROP_TEXTS: Final[Mapping[int, str]] = {
    0: "Success",
    2: "Invalid packet",
    3: "Interface",
    4: "Interface Decrypted",
    5: "LB, sock cgroup: No backend slot entry found",
    6: "LB, sock cgroup: No backend entry found",
    7: "LB, sock cgroup: Reverse entry update failed",
    8: "LB, sock cgroup: Reverse entry stale",
    9: "Fragmented packet",
    10: "Fragmented packet entry update failed",
    11: "Missed tail call to custom program",
    12: "Interface Decrypting",
    13: "Interface Encrypting",
    14: "LB: sock cgroup: Reverse entry delete succeeded",
    15: "MTU error message",
    130: "Invalid source mac",
    131: "Invalid destination mac",
    132: "Invalid source ip",
    133: "Policy denied",
    134: "Invalid packet",
    135: "CT: Truncated or invalid header",
    136: "Fragmentation needed",
    137: "CT: Unknown L4 protocol",
    138: "CT: Can't create entry from packet",
    139: "Unsupported L3 protocol",
    140: "Missed tail call",
    141: "Error writing to packet",
    142: "Unknown L4 protocol",
    143: "Unknown ICMPv4 code",
    144: "Unknown ICMPv4 type",
    145: "Unknown ICMPv6 code",
    146: "Unknown ICMPv6 type",
    147: "Error retrieving tunnel key",
    148: "Error retrieving tunnel options",
    149: "Invalid Geneve option",
    150: "Unknown L3 target address",
    151: "Stale or unroutable IP",
    152: "No matching local container found",
    153: "Error while correcting L3 checksum",
    154: "Error while correcting L4 checksum",
    155: "CT: Map insertion failed",
    156: "Invalid IPv6 extension header",
    157: "IP fragmentation not supported",
    158: "Service backend not found",
    160: "No tunnel/encapsulation endpoint (datapath BUG!)",
    161: "NAT 46/64 not enabled",
    162: "Reached EDT rate-limiting drop horizon",
    163: "Unknown connection tracking state",
    164: "Local host is unreachable",
    165: "No configuration available to perform policy decision",
    166: "Unsupported L2 protocol",
    167: "No mapping for NAT masquerade",
    168: "Unsupported protocol for NAT masquerade",
    169: "FIB lookup failed",
    170: "Encapsulation traffic is prohibited",
    171: "Invalid identity",
    172: "Unknown sender",
    173: "NAT not needed",
    174: "Is a ClusterIP",
    175: "First logical datagram fragment not found",
    176: "Forbidden ICMPv6 message",
    177: "Denied by LB src range check",
    178: "Socket lookup failed",
    179: "Socket assign failed",
    180: "Proxy redirection not supported for protocol",
    181: "Policy denied by denylist",
    182: "VLAN traffic disallowed by VLAN filter",
    183: "Incorrect VNI from VTEP",
    184: "Failed to update or lookup TC buffer",
    185: "No SID was found for the IP address",
    186: "SRv6 state was removed during tail call",
    187: "L3 translation from IPv4 to IPv6 failed (NAT46)",
    188: "L3 translation from IPv6 to IPv4 failed (NAT64)",
    189: "Authentication required",
    190: "No conntrack map found",
    191: "No nat map found",
    192: "Invalid ClusterID",
    193: "Unsupported packet protocol for DSR encapsulation",
    194: "No egress gateway found",
    195: "Traffic is unencrypted",
    196: "TTL exceeded",
    197: "No node ID found",
    198: "Rate limited",
    199: "IGMP handled",
    200: "IGMP subscribed",
    201: "Multicast handled",
    202: "Host datapath not ready",
    203: "Endpoint policy program not available",
    204: "No Egress IP configured",
    205: "Punt to proxy",
}
"""`sub_type` → text of the drop event. Below 130 are events of the datapath that are no drops."""

AGENT_EVENTS: Final = (
    "unspecified",
    "message",
    "agent-started",
    "endpoint-regenerate-success",
    "endpoint-regenerate-failure",
    "policy-updated",
    "policy-deleted",
    "endpoint-created",
    "endpoint-deleted",
    "ipcache-upserted",
    "ipcache-deleted",
)
"""Indexed by `event_type.sub_type` of an agent event."""

SOCKET_POINTS: Final[Mapping[str, str]] = {
    "SOCK_XLATE_POINT_PRE_DIRECTION_FWD": "pre-xlate-fwd",
    "SOCK_XLATE_POINT_POST_DIRECTION_FWD": "post-xlate-fwd",
    "SOCK_XLATE_POINT_PRE_DIRECTION_REV": "pre-xlate-rev",
    "SOCK_XLATE_POINT_POST_DIRECTION_REV": "post-xlate-rev",
}
"""`sock_xlate_point` → its text."""

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
