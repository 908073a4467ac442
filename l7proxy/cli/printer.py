"""Flows as text, in the very form of Hubble's command line; denials are followed by their reason, which is ours.

`TIME[ [NODE]]: SOURCE (ID) ARROW DESTINATION (ID) TYPE VERDICT (SUMMARY)[ reason: …]`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, repeat
from typing import Final

from l7proxy.cli.terminal import Paint, plain
from l7proxy.flows import hubble, timestamp
from l7proxy.flows.flow import Endpoint, Flow, LostEvents, NodeStatus, Policy, Response, Service

VERDICT_COLOURS: Final = {
    "FORWARDED": "green",
    "ALLOWED": "green",
    "REDIRECTED": "green",
    "DROPPED": "red",
    "DENIED": "red",
    "ERROR": "red",
    "AUDIT": "yellow",
    "AUDITED": "yellow",
}
JUDGED: Final = {
    "FORWARDED": "ALLOWED",
    "REDIRECTED": "ALLOWED",
    "DROPPED": "DENIED",
    "ERROR": "DENIED",
    "AUDIT": "AUDITED",
}
"""A policy verdict's words for a verdict."""


@dataclass(frozen=True, slots=True)
class Style:
    """How to print. `numeric` shows addresses instead of names."""

    paint: Paint
    node_name: bool = False
    policy_names: bool = False
    numeric: bool = False


@dataclass(frozen=True, slots=True)
class Columns:
    """The parts of one flow, as every form of output arranges them."""

    time: str
    node: str
    source: str
    destination: str
    arrow: str
    kind: str
    verdict: str
    summary: str
    reason: str


def compact(response: Response, style: Style) -> str | None:
    """One line, or None for what compact output does not show."""
    if response.flow is None:
        return _other(response)
    parts = columns(response.flow, style)
    node = f" [{parts.node}]" if style.node_name else ""
    reason = f" reason: {parts.reason}" if parts.reason else ""
    verdict = style.paint(parts.verdict, _colour(parts.verdict))
    return (
        f"{parts.time}{node}: {parts.source} {parts.arrow} {parts.destination} "
        f"{parts.kind} {verdict} ({parts.summary}){style.paint(reason, 'dim')}"
    )


def columns(flow: Flow, style: Style) -> Columns:
    """An answer is shown the way its question went: the arrow turns, not the ends."""
    source, destination = _side(flow, style, source=True), _side(flow, style, source=False)
    if flow.is_reply:
        source, destination = destination, source
    return Columns(
        time=clock(flow.time),
        node=plain(flow.node_name),
        source=source,
        destination=destination,
        arrow="<>" if flow.is_reply is None else "<-" if flow.is_reply else "->",
        kind=_kind(flow),
        verdict=_verdict(flow, names=style.policy_names),
        summary=plain(_summary(flow)),
        reason=plain("; ".join(flow.reasons)),
    )


def clock(value: str) -> str:
    """`Nov  3 20:00:00.000`, in UTC; N/A when there is none."""
    try:
        nanos = timestamp.parse(value)
    except ValueError:
        return "N/A"
    moment = datetime.fromtimestamp(nanos // timestamp.SECOND, UTC)
    millis = nanos % timestamp.SECOND // 1_000_000
    return f"{MONTHS[moment.month - 1]} {moment.day:2d} {moment:%H:%M:%S}.{millis:03d}"


MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
"""Not strftime's: those follow the locale."""


def blocks() -> Callable[[Response, Style], str | None]:
    """One `KEY: value` per line; flows are set apart from the second on."""
    separators = chain([""], repeat("------------\n"))

    def block(response: Response, style: Style) -> str | None:
        if response.flow is None:
            return _other(response)
        parts = columns(response.flow, style)
        rows = [("TIMESTAMP", parts.time)]
        rows += [("NODE", parts.node)] if style.node_name else []
        rows += [("SOURCE", parts.source), ("DESTINATION", parts.destination), ("TYPE", parts.kind)]
        rows += [("VERDICT", parts.verdict), ("SUMMARY", parts.summary)]
        rows += [("REASON", parts.reason)] if parts.reason else []
        width = max(len(key) for key, _ in rows)
        return next(separators) + "\n".join(f"{key:>{width}}: {value}" for key, value in rows)

    return block


def line(response: Response, _: Style) -> str:
    """The exported object: what --input-file reads."""
    return response.line().decode().rstrip("\n")


def table_rows(flows: Sequence[Flow], style: Style) -> tuple[list[str], Iterator[list[str]]]:
    """(headers, rows) of the table."""
    headers = [
        "TIMESTAMP",
        *(["NODE"] if style.node_name else []),
        "SOURCE",
        "DESTINATION",
        "TYPE",
        "VERDICT",
        "SUMMARY",
    ]

    def rows() -> Iterator[list[str]]:
        for flow in flows:
            parts = columns(flow, style)
            node = [parts.node] if style.node_name else []
            summary = f"{parts.summary} reason: {parts.reason}" if parts.reason else parts.summary
            yield [parts.time, *node, parts.source, parts.destination, parts.kind, parts.verdict, summary]

    return headers, rows()


def _side(flow: Flow, style: Style, *, source: bool) -> str:
    """`namespace/pod:port (ID:1234)`."""
    end = (flow.source if source else flow.destination) or Endpoint()
    service = flow.source_service if source else flow.destination_service
    names = flow.source_names if source else flow.destination_names
    address = (flow.ip.source if source else flow.ip.destination) if flow.ip else ""
    host = _host(end, service, names, address, numeric=style.numeric) if flow.ip else ""
    return f"{plain(_with_port(host, _port(flow, source=source)))} {style.paint(_identity(end.identity), 'dim')}"


def _host(end: Endpoint, service: Service | None, names: Sequence[str], address: str, *, numeric: bool) -> str:
    if numeric:
        return address
    namespace = (service.namespace if service else "") or end.namespace
    name = end.pod_name or (service.name if service else "")
    if name:
        return f"{namespace}/{name}" if namespace else name
    return ",".join(names) or address


def _with_port(host: str, port: int) -> str:
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port(flow: Flow, *, source: bool) -> int:
    ports = flow.l4.ports if flow.l4 else None
    if ports is None:
        return 0
    return ports.source_port if source else ports.destination_port


def _identity(number: int) -> str:
    return f"({_word(hubble.RESERVED_NAMES, number, f'ID:{number}')})"


def _word(words: Sequence[str], number: int, other: str) -> str:
    return words[number] if 0 <= number < len(words) else other


def _kind(flow: Flow) -> str:
    if flow.l7 is not None:
        return _l7_kind(flow)
    event = flow.event_type
    if event is None:
        return "UNKNOWN"
    match event.type:
        case hubble.EventType.TRACE:
            return _word(hubble.TRACE_POINTS, event.sub_type, str(event.sub_type))
        case hubble.EventType.DROP:
            return hubble.DROP_TEXTS.get(event.sub_type, f"drop reason {event.sub_type}")
        case hubble.EventType.POLICY_VERDICT:
            match_type = _word(hubble.MATCH_TYPES, flow.policy_match_type, str(flow.policy_match_type))
            return f"policy-verdict:{match_type} {plain(flow.traffic_direction) or 'TRAFFIC_DIRECTION_UNKNOWN'}"
    return "UNKNOWN"


def _l7_kind(flow: Flow) -> str:
    l7 = flow.l7
    assert l7 is not None
    record = (
        "dns" if l7.dns is not None else "http" if l7.http is not None else "kafka" if l7.kafka is not None else "l7"
    )
    kind = f"{record}-{plain(l7.type).lower() or 'unknown_l7_type'}"
    return f"{kind} {plain(l7.dns.observation_source)}" if l7.dns is not None else kind


def _verdict(flow: Flow, *, names: bool) -> str:
    verdict = plain(flow.verdict) or "VERDICT_UNKNOWN"
    if flow.l7 is not None or flow.event_type is None or flow.event_type.type != hubble.EventType.POLICY_VERDICT:
        return verdict
    said = JUDGED.get(verdict, verdict)
    by = ", ".join(f"{plain(one.name)} ({plain(one.kind)})" for one in _policies(flow, said) if one.name and one.kind)
    return f"{said} BY {by}" if names and by else said


def _policies(flow: Flow, said: str) -> tuple[Policy, ...]:
    ingress = flow.traffic_direction == "INGRESS"
    if said == "ALLOWED":
        return flow.ingress_allowed_by if ingress else flow.egress_allowed_by
    if said == "DENIED":
        return flow.ingress_denied_by if ingress else flow.egress_denied_by
    return ()


def _colour(verdict: str) -> str:
    return VERDICT_COLOURS.get(verdict.partition(" ")[0], "bold")


def _summary(flow: Flow) -> str:
    return f"{flow.summary}; Auth: {flow.auth_type}" if flow.auth_type else flow.summary


def _other(response: Response) -> str | None:
    if response.lost_events is not None:
        return _lost(response.lost_events, response.time)
    if response.node_status is not None:
        return _status(response.node_status, response.time)
    return None


def _lost(lost: LostEvents, time: str) -> str:
    span = f" (first: {clock(lost.first)}, last: {clock(lost.last)})" if lost.first and lost.last else ""
    source = plain(lost.source) or hubble.LOST_SOURCES[0]
    return f"{clock(time)} EVENTS LOST: {source} CPU({lost.cpu or 0}) {plain(lost.num_events_lost) or 0}{span}"


def _status(status: NodeStatus, time: str) -> str | None:
    names = plain(", ".join(status.node_names))
    match status.state_change:
        case "NODE_UNAVAILABLE":
            return f"{clock(time)} [relay]: {len(status.node_names)} nodes are unavailable: {names}"
        case "NODE_ERROR":
            return f'{clock(time)} [relay]: Error "{plain(status.message)}" on {len(status.node_names)} nodes: {names}'
    return None
