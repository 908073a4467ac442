"""A flow, field for field as Hubble's exporter writes it.

The structs *are* protobuf's JSON mapping of `flow.Flow`: enums by name, 64-bit numbers as text, times as RFC 3339, zero
values omitted, fields in the order of the API's files, the API's own capitals (`IP`, `Type`, `Summary`, `ID`, `TCP`…).
So encoding a struct is all of the export, and field names are defined in one place only.
`is_reply` has three states: None is unknown, as for dropped packets.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, get_args

import msgspec

from l7proxy.errors import SourceError
from l7proxy.flows import hubble_constants as hubble
from l7proxy.flows import timestamp

DEFAULT_CLUSTER: Final = "default"


def node_name(node: str, cluster: str) -> str:
    """As flows name a node: with its cluster, unless that is `default`."""
    return node if cluster in ("", DEFAULT_CLUSTER) else f"{cluster}/{node}"


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all messages: immutable, keyword-only, zero values omitted in JSON."""


class Workload(Message, frozen=True):
    name: str = ""
    kind: str = ""


class Endpoint(Message, frozen=True):
    """One end of a connection: `ID` is set for pods of this node only, `labels` are sorted `source:key=value`."""

    id: int = msgspec.field(default=0, name="ID")
    identity: int = 0
    cluster_name: str = ""
    namespace: str = ""
    labels: tuple[str, ...] = ()
    pod_name: str = ""
    workloads: tuple[Workload, ...] = ()


class Service(Message, frozen=True):
    name: str = ""
    namespace: str = ""


class IP(Message, frozen=True):
    source: str = ""
    source_xlated: str = ""
    destination: str = ""
    version: str = msgspec.field(default="", name="ipVersion")
    encrypted: bool = False


class Ethernet(Message, frozen=True):
    source: str = ""
    destination: str = ""


class Flags(Message, frozen=True):
    """TCP flags, named as in hubble.TCP_FLAGS."""

    fin: bool = msgspec.field(default=False, name="FIN")
    syn: bool = msgspec.field(default=False, name="SYN")
    rst: bool = msgspec.field(default=False, name="RST")
    psh: bool = msgspec.field(default=False, name="PSH")
    ack: bool = msgspec.field(default=False, name="ACK")
    urg: bool = msgspec.field(default=False, name="URG")
    ece: bool = msgspec.field(default=False, name="ECE")
    cwr: bool = msgspec.field(default=False, name="CWR")
    ns: bool = msgspec.field(default=False, name="NS")

    def names(self) -> list[str]:
        return [name for name, _ in hubble.TCP_FLAGS if getattr(self, name.lower())]


class Ports(Message, frozen=True):
    """TCP, UDP or SCTP; only TCP has flags, and only at L3/L4."""

    source_port: int = 0
    destination_port: int = 0
    flags: Flags | None = None


class Icmp(Message, frozen=True):
    type: int = 0
    code: int = 0


class Vrrp(Message, frozen=True):
    type: int = 0
    vrid: int = 0
    priority: int = 0


class Igmp(Message, frozen=True):
    type: int = 0
    group_address: str = ""


class Layer4(Message, frozen=True):
    tcp: Ports | None = msgspec.field(default=None, name="TCP")
    udp: Ports | None = msgspec.field(default=None, name="UDP")
    icmpv4: Icmp | None = msgspec.field(default=None, name="ICMPv4")
    icmpv6: Icmp | None = msgspec.field(default=None, name="ICMPv6")
    sctp: Ports | None = msgspec.field(default=None, name="SCTP")
    vrrp: Vrrp | None = msgspec.field(default=None, name="VRRP")
    igmp: Igmp | None = msgspec.field(default=None, name="IGMP")

    @property
    def ports(self) -> Ports | None:
        return self.tcp or self.udp or self.sctp


class Tunnel(Message, frozen=True):
    protocol: str = ""
    ip: IP | None = msgspec.field(default=None, name="IP")
    l4: Layer4 | None = None
    vni: int = 0


class Header(Message, frozen=True):
    key: str = ""
    value: str = ""


class Http(Message, frozen=True):
    code: int = 0
    method: str = ""
    url: str = ""
    protocol: str = ""
    headers: tuple[Header, ...] = ()


class Dns(Message, frozen=True):
    query: str = ""
    ips: tuple[str, ...] = ()
    ttl: int = 0
    cnames: tuple[str, ...] = ()
    observation_source: str = ""
    rcode: int = 0
    qtypes: tuple[str, ...] = ()
    rrtypes: tuple[str, ...] = ()


class Kafka(Message, frozen=True):
    error_code: int = 0
    api_version: int = 0
    api_key: str = ""
    correlation_id: int = 0
    topic: str = ""


class Layer7(Message, frozen=True):
    type: str = ""
    latency_ns: str = ""
    dns: Dns | None = None
    http: Http | None = None
    kafka: Kafka | None = None


class CiliumEventType(Message, frozen=True):
    type: int = 0
    sub_type: int = 0


class Policy(Message, frozen=True):
    """A policy that allowed or denied. Its labels name its source and the rule inside it."""

    name: str = ""
    namespace: str = ""
    labels: tuple[str, ...] = ()
    revision: str = ""
    kind: str = ""


class NetworkInterface(Message, frozen=True):
    index: int = 0
    name: str = ""


class TraceParent(Message, frozen=True):
    trace_id: str = ""


class TraceContext(Message, frozen=True):
    parent: TraceParent | None = None


class IPTraceId(Message, frozen=True):
    trace_id: str = ""
    ip_option_type: int = 0


class FileInfo(Message, frozen=True):
    name: str = ""
    line: int = 0


class Aggregate(Message, frozen=True):
    ingress_flow_count: int = 0
    egress_flow_count: int = 0
    unknown_direction_flow_count: int = 0


class Emitter(Message, frozen=True):
    name: str = ""
    version: str = ""


class Flow(Message, frozen=True):
    """One evaluated connection, packet, request or response. `policy_log` says in words why it was denied."""

    time: str = ""
    uuid: str = ""
    emitter: Emitter | None = None
    verdict: str = ""
    drop_reason: int = 0
    auth_type: str = ""
    ethernet: Ethernet | None = None
    ip: IP | None = msgspec.field(default=None, name="IP")
    l4: Layer4 | None = None
    tunnel: Tunnel | None = None
    source: Endpoint | None = None
    destination: Endpoint | None = None
    type: str = msgspec.field(default="", name="Type")
    node_name: str = ""
    node_labels: tuple[str, ...] = ()
    source_names: tuple[str, ...] = ()
    destination_names: tuple[str, ...] = ()
    l7: Layer7 | None = None
    reply: bool = False
    event_type: CiliumEventType | None = None
    source_service: Service | None = None
    destination_service: Service | None = None
    traffic_direction: str = ""
    policy_match_type: int = 0
    trace_observation_point: str = ""
    trace_reason: str = ""
    file: FileInfo | None = None
    ip_trace_id: IPTraceId | None = None
    drop_reason_desc: str = ""
    is_reply: bool | None = None
    debug_capture_point: str = ""
    interface: NetworkInterface | None = None
    proxy_port: int = 0
    trace_context: TraceContext | None = None
    sock_xlate_point: str = ""
    socket_cookie: str = ""
    cgroup_id: str = ""
    summary: str = msgspec.field(default="", name="Summary")
    extensions: dict[str, Any] | None = None
    """google.protobuf.Any as protobuf's JSON mapping writes it: `@type`, and what it holds. See `extended`."""
    egress_allowed_by: tuple[Policy, ...] = ()
    ingress_allowed_by: tuple[Policy, ...] = ()
    egress_denied_by: tuple[Policy, ...] = ()
    ingress_denied_by: tuple[Policy, ...] = ()
    policy_log: tuple[str, ...] = ()
    aggregate: Aggregate | None = None

    @property
    def time_ns(self) -> int:
        """The event's time, 0 if missing or invalid."""
        return _moment(self.time)

    @property
    def lost(self) -> int:
        return 0

    def flow(self) -> Flow:
        return self

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it was refused, or would have been without audit, in words; empty if allowed."""
        return self.policy_log if self.verdict in NOT_FORWARDED else ()

    def response(self) -> Response:
        return Response(flow=self, node_name=self.node_name, time=self.time)

    def to_json(self) -> dict[str, Any]:
        """The exporter's object: `{"flow": {…}, "node_name": …, "time": …}`."""
        return self.response().to_json()

    def line(self) -> bytes:
        """The same, encoded, with a line end."""
        return self.response().line()


class LostEvents(Message, frozen=True):
    """Flows that were lost: how many, and when."""

    source: str = ""
    num_events_lost: str = ""
    cpu: int | None = None
    first: str = ""
    last: str = ""


class NodeStatus(Message, frozen=True):
    """Node status from a Hubble relay: only in files written by a relay's client."""

    state_change: str = ""
    node_names: tuple[str, ...] = ()
    message: str = ""


class Response(Message, frozen=True):
    """One line of an export file or of an observer's response: exactly one of the first three fields is set."""

    flow: Flow | None = None
    node_status: NodeStatus | None = None
    lost_events: LostEvents | None = None
    node_name: str = ""
    time: str = ""

    @property
    def time_ns(self) -> int:
        """The time that since and until compare: the response's time, else the flow's; 0 if missing or invalid."""
        return _moment(self.time or (self.flow.time if self.flow else ""))

    def to_json(self) -> dict[str, Any]:
        return msgspec.json.decode(_ENCODER.encode(self), type=dict[str, Any])

    def line(self) -> bytes:
        return _ENCODER.encode(self) + b"\n"


STRUCT: Final = "type.googleapis.com/google.protobuf.Struct"


def extended(flow: Flow, fields: Mapping[str, Any]) -> Flow:
    """With fields that Hubble's API has not: a google.protobuf.Struct, which its clients print."""
    return msgspec.structs.replace(flow, extensions={"@type": STRUCT, "value": dict(fields)})


NOT_FORWARDED: Final = frozenset({"DROPPED", "ERROR", "AUDIT"})
_ENCODER: Final = msgspec.json.Encoder()


def from_json(text: str | bytes) -> Response:
    """Read one exported line. SourceError says what is wrong with it.

    Accepts what protobuf's JSON reader accepts: names as in the API or in camelCase, enums by name or number, numbers
    also as text. Unknown fields are ignored: newer servers have more of them.
    """
    return of_object(decoded(text))


def decoded(text: str | bytes) -> Any:
    """One line of JSON. SourceError."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"not a JSON object: {error}") from error


def of_object(found: Any) -> Response:
    """The same, from decoded JSON."""
    if not isinstance(found, dict):
        raise SourceError(f"expected a JSON object, not {type(found).__name__}")
    try:
        return msgspec.convert(_canonical(Response, found), Response, strict=False)
    except (msgspec.ValidationError, RecursionError) as error:
        raise SourceError(f"not a Hubble flow: {error}") from error


def _moment(value: str) -> int:
    try:
        return timestamp.parse(value)
    except ValueError:
        return 0


_NUMBERED: Final[Mapping[tuple[type[Message], str], tuple[str, ...]]] = {
    (Flow, "verdict"): hubble.VERDICTS,
    (Flow, "Type"): hubble.FLOW_TYPES,
    (Flow, "traffic_direction"): hubble.DIRECTIONS,
    (IP, "ipVersion"): hubble.IP_VERSIONS,
    (Layer7, "type"): hubble.L7_TYPES,
    (LostEvents, "source"): hubble.LOST_SOURCES,
}


def _canonical(message: type[Message], value: dict[str, Any]) -> dict[str, Any]:
    """The fields of `message`, with the API's names, and values in the form that this module writes."""
    found: dict[str, Any] = {}
    for name, kind, inner in _shape(message):
        raw = value.get(name, value.get(_camel(name)))
        if raw is None:
            continue
        if inner is not None and isinstance(raw, dict):
            raw = _canonical(inner, raw)
        elif inner is not None and isinstance(raw, list):
            raw = [_canonical(inner, item) if isinstance(item, dict) else item for item in raw]
        elif kind is str and isinstance(raw, int) and not isinstance(raw, bool):
            raw = _word(message, name, raw)
        found[name] = raw
    return found


def _word(message: type[Message], name: str, number: int) -> str:
    """An enum's name by its number; a 64-bit number in its text form."""
    words = _NUMBERED.get((message, name), ())
    return words[number] if 0 <= number < len(words) else str(number)


@cache
def _shape(message: type[Message]) -> tuple[tuple[str, Any, type[Message] | None], ...]:
    """(name, type, nested message) of each field of a message."""
    shape = []
    for one in msgspec.structs.fields(message):
        inside = [
            kind for kind in (one.type, *get_args(one.type)) if isinstance(kind, type) and issubclass(kind, Message)
        ]
        shape.append((one.encode_name, one.type, inside[0] if inside else None))
    return tuple(shape)


@cache
def _camel(name: str) -> str:
    """`drop_reason_desc` → `dropReasonDesc`."""
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)
