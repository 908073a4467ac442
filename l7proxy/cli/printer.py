"""Prints flows exactly as the Hubble CLI does; in addition, a denial is followed by its reason.

Only the compact form shows identities and swaps the ends of a reply:
`TIME[ [NODE]]: SOURCE (ID) ARROW DESTINATION (ID) TYPE VERDICT (SUMMARY)[ reason: …]`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate, chain, repeat
from typing import Final

from l7proxy.cli.terminal import Paint, plain
from l7proxy.flows import hubble_constants as hubble
from l7proxy.flows import timestamp
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
"""Verdict → its name in a policy verdict event."""
NODE_PROBLEMS: Final = ("NODE_UNAVAILABLE", "NODE_ERROR")
"""Node states that are printed; the others are for debugging."""
PADDING: Final = 3
"""Minimum number of blanks between two table columns."""
MAX_NAMES: Final = 50


@dataclass(frozen=True, slots=True)
class Style:
    """How to print. `numeric` shows addresses instead of names."""

    paint: Paint
    node_name: bool = False
    policy_names: bool = False
    numeric: bool = False


@dataclass(frozen=True, slots=True)
class Columns:
    """The parts of one flow, or of lost events, for every output format."""

    time: str
    node: str
    source: str
    destination: str
    kind: str
    verdict: str
    summary: str
    reason: str = ""


def compact(response: Response, style: Style) -> str | None:
    """One line, or None for what compact output omits. A reply shows the client first, too, with the arrow reversed."""
    flow = response.flow
    if flow is None:
        return _other(response)
    parts = columns(flow, style)
    ends = [
        _with_identity(parts.source, flow.source, style),
        _with_identity(parts.destination, flow.destination, style),
    ]
    arrow = "<>" if flow.is_reply is None else "<-" if flow.is_reply else "->"
    node = f" [{parts.node}]" if style.node_name else ""
    reason = f" reason: {parts.reason}" if parts.reason else ""
    verdict = style.paint(parts.verdict, _colour(parts.verdict))
    return (
        f"{parts.time}{node}: {f' {arrow} '.join(reversed(ends) if flow.is_reply else ends)} "
        f"{parts.kind} {verdict} ({parts.summary}){style.paint(reason, 'dim')}"
    )


def columns(flow: Flow, style: Style) -> Columns:
    return Columns(
        time=clock(flow.time),
        node=plain(flow.node_name),
        source=plain(_end(flow, style, source=True)),
        destination=plain(_end(flow, style, source=False)),
        kind=_kind(flow),
        verdict=_verdict(flow, names=style.policy_names),
        summary=plain(_summary(flow)),
        reason=plain("; ".join(flow.reasons)),
    )


def _columns_of(response: Response, style: Style) -> Columns | None:
    """The columns for the table and the blocks; None for what they omit."""
    if response.flow is not None:
        return columns(response.flow, style)
    lost = response.lost_events
    if lost is None:
        return None
    return Columns(
        time=clock(response.time),
        node=plain(response.node_name) or "-",
        source=_lost_source(lost),
        destination="-",
        kind="EVENTS LOST",
        verdict="-",
        summary=f"CPU({lost.cpu or 0}) - {_lost_count(lost)}",
    )


def clock(value: str) -> str:
    """`Nov  3 20:00:00.000`, in UTC; N/A if missing or invalid."""
    try:
        nanos = timestamp.parse(value)
    except ValueError:
        return "N/A"
    moment = datetime.fromtimestamp(nanos // timestamp.SECOND, UTC)
    millis = nanos % timestamp.SECOND // 1_000_000
    return f"{MONTHS[moment.month - 1]} {moment.day:2d} {moment:%H:%M:%S}.{millis:03d}"


MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
"""Not strftime's names, which depend on the locale."""


def blocks() -> Callable[[Response, Style], str | None]:
    """One `KEY: value` per line, without identities; a separator line before each flow but the first."""
    separators = chain([""], repeat("------------\n"))

    def block(response: Response, style: Style) -> str | None:
        rows = _block(response, style)
        if not rows:
            return None
        return next(separators) + "\n".join(f"{key:>{len('DESTINATION')}}: {value}" for key, value in rows)

    return block


def _block(response: Response, style: Style) -> list[tuple[str, str]]:
    parts = _columns_of(response, style)
    if parts is None:
        return _status_block(response)
    return [
        ("TIMESTAMP", parts.time),
        *([("NODE", parts.node)] if style.node_name else []),
        ("SOURCE", parts.source),
        *([("DESTINATION", parts.destination)] if response.flow is not None else []),
        ("TYPE", parts.kind),
        ("VERDICT", parts.verdict),
        ("SUMMARY", parts.summary),
        *([("REASON", parts.reason)] if parts.reason else []),
    ]


def _status_block(response: Response) -> list[tuple[str, str]]:
    status = response.node_status
    if status is None or status.state_change not in NODE_PROBLEMS:
        return []
    return [
        ("TIMESTAMP", clock(response.time)),
        ("STATE", status.state_change),
        ("NODES", _names(status)),
        ("MESSAGE", f'"{plain(status.message)}"' if status.message else "N/A"),
    ]


def line(response: Response, _: Style) -> str:
    """The exported object, as --input-file reads it."""
    return response.line().decode().rstrip("\n")


def table(responses: Iterable[Response], style: Style) -> Iterator[str]:
    """The lines of the table, without identities; no lines at all, not even headers, if there is nothing to show."""
    headers = Columns("TIMESTAMP", "NODE", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY")
    found = [parts for response in responses if (parts := _columns_of(response, style)) is not None]
    rows = [_row(parts, style) for parts in (headers, *found)] if found else []
    widths = [max(map(len, column)) + PADDING for column in zip(*rows, strict=True)]
    for *cells, last in rows:
        yield "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)) + last


def _row(parts: Columns, style: Style) -> list[str]:
    node = [parts.node] if style.node_name else []
    summary = f"{parts.summary} reason: {parts.reason}" if parts.reason else parts.summary
    return [parts.time, *node, parts.source, parts.destination, parts.kind, parts.verdict, summary]


def _end(flow: Flow, style: Style, *, source: bool) -> str:
    """`namespace/pod:port`."""
    end = (flow.source if source else flow.destination) or Endpoint()
    service = flow.source_service if source else flow.destination_service
    names = flow.source_names if source else flow.destination_names
    address = (flow.ip.source if source else flow.ip.destination) if flow.ip else ""
    host = _host(end, service, names, address, numeric=style.numeric) if flow.ip else ""
    return _with_port(host, _port(flow, source=source))


def _with_identity(text: str, end: Endpoint | None, style: Style) -> str:
    """`namespace/pod:port (ID:1234)`."""
    return f"{text} {style.paint(_identity((end or Endpoint()).identity), 'dim')}"


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
        return _status(response.node_status, response)
    return None


def _lost(lost: LostEvents, time: str) -> str:
    return f"{clock(time)} EVENTS LOST: {_lost_source(lost)} CPU({lost.cpu or 0}) {_lost_count(lost)}"


def _lost_source(lost: LostEvents) -> str:
    return plain(lost.source) or hubble.LOST_SOURCES[0]


def _lost_count(lost: LostEvents) -> str:
    span = f" (first: {clock(lost.first)}, last: {clock(lost.last)})" if lost.first and lost.last else ""
    return f"{plain(lost.num_events_lost) or 0}{span}"


def _status(status: NodeStatus, response: Response) -> str | None:
    place, count = f"{clock(response.time)} [{plain(response.node_name)}]", len(status.node_names)
    match status.state_change:
        case "NODE_UNAVAILABLE":
            return f"{place}: {count} nodes are unavailable: {_names(status)}"
        case "NODE_ERROR":
            return f'{place}: Error "{plain(status.message)}" on {count} nodes: {_names(status)}'
    return None


def _names(status: NodeStatus) -> str:
    """The first names, at least one and up to about 50 characters, and the number of the others."""
    lengths = accumulate(len(name) + len(", ") for name in status.node_names)
    shown = max(1, sum(length <= MAX_NAMES for length in lengths))
    more = len(status.node_names) - shown
    return plain(", ".join(status.node_names[:shown])) + (f" (and {more} more)" if more > 0 else "")
