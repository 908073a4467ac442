"""Prints flows byte for byte as the Hubble CLI does. With `Style.reasons` a denial is followed by its reason.

Only the compact form shows identities and swaps the ends of a reply:
`TIME[ [NODE]]: SOURCE (ID) ARROW DESTINATION (ID) TYPE VERDICT (SUMMARY)[ reason: …]`

Text from pods and manifests cannot control the terminal: more characters are escaped than Hubble does (it escapes ESC
and CR), in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, TextIO

import msgspec

from l7proxy.cli import terminal
from l7proxy.cli.flow_time import TimeFormat, shown
from l7proxy.cli.terminal import Paint
from l7proxy.flows import hubble_constants as hubble
from l7proxy.flows import timestamp
from l7proxy.flows.flow import Endpoint, Flow, NodeStatus, Policy, Response, Service

VERDICT_COLOURS: Final = {
    "FORWARDED": "green",
    "REDIRECTED": "green",
    "DROPPED": "red",
    "ERROR": "red",
    "AUDIT": "yellow",
    "TRACED": "yellow",
    "TRANSLATED": "yellow",
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
SEPARATOR: Final = "------------"
KEY_WIDTH: Final = len("DESTINATION")
HTML: Final = {
    b"<": rb"\u003c", b">": rb"\u003e", b"&": rb"\u0026",
    "\u2028".encode(): rb"\u2028", "\u2029".encode(): rb"\u2029",
}  # fmt: skip
"""What Go's JSON encoder escapes besides."""


@dataclass(frozen=True, slots=True)
class Style:
    """How to print. `numeric` shows addresses instead of names; `debug`: also nodes that come and go."""

    paint: Paint
    node_name: bool = False
    policy_names: bool = False
    numeric: bool = False
    reasons: bool = False
    time_format: TimeFormat = TimeFormat.STAMP_MILLI
    debug: bool = False

    def clock(self, value: str) -> str:
        return shown(value, self.time_format)


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


def plain(text: str) -> str:
    """As `terminal.plain`; ESC in Hubble's form, `^[`."""
    return text if text.isprintable() else terminal.plain(text.replace(terminal.ESCAPE, "^["))


def compact(response: Response, style: Style) -> str | None:
    """One line, or None for what compact output omits. A reply shows the client first, too, with the arrow reversed."""
    flow = response.flow
    if flow is None:
        return _lost(response, style) if response.lost_events is not None else None
    parts = columns(flow, style)
    ends = [
        f"{parts.source} {_identity(flow.source, style)}",
        f"{parts.destination} {_identity(flow.destination, style)}",
    ]
    arrow = "<>" if flow.is_reply is None else "<-" if flow.is_reply else "->"
    node = f" [{parts.node}]" if style.node_name else ""
    reason = style.paint(f" reason: {parts.reason}", "dim") if parts.reason else ""
    return (
        f"{parts.time}{node}: {f' {arrow} '.join(reversed(ends) if flow.is_reply else ends)} "
        f"{parts.kind} {parts.verdict} ({parts.summary}){reason}"
    )


def columns(flow: Flow, style: Style) -> Columns:
    return Columns(
        time=style.clock(flow.time),
        node=plain(flow.node_name),
        source=_end(flow, style, source=True),
        destination=_end(flow, style, source=False),
        kind=_kind(flow),
        verdict=_verdict(flow, style),
        summary=_summary(flow, style),
        reason=plain("; ".join(flow.reasons)) if style.reasons else "",
    )


def _columns_of(response: Response, style: Style) -> Columns | None:
    """The columns for the table and the blocks; None for what they omit."""
    if response.flow is not None:
        return columns(response.flow, style)
    lost = response.lost_events
    if lost is None:
        return None
    return Columns(
        time=style.clock(response.time),
        node=plain(response.node_name) or "-",
        source=_lost_source(response),
        destination="-",
        kind="EVENTS LOST",
        verdict="-",
        summary=f"CPU({lost.cpu or 0}) - {_lost_count(response, style)}",
    )


def block(response: Response, style: Style) -> str | None:
    """One `KEY: value` per line, without identities."""
    parts = _columns_of(response, style)
    if parts is None:
        return None
    return _lines(
        ("TIMESTAMP", parts.time),
        *([("NODE", parts.node)] if style.node_name else []),
        ("SOURCE", parts.source),
        *([("DESTINATION", parts.destination)] if response.flow is not None else []),
        ("TYPE", parts.kind),
        ("VERDICT", parts.verdict),
        ("SUMMARY", parts.summary),
        *([("REASON", parts.reason)] if parts.reason else []),
    )


def _lines(*rows: tuple[str, str]) -> str:
    return "\n".join(f"{key:>{KEY_WIDTH}}: {value}" for key, value in rows)


def line(response: Response, _: Style) -> str | None:
    """The exported object, as --input-file reads it, in the bytes of Hubble's JSON encoder."""
    if response.flow is None and response.lost_events is None and response.node_status is None:
        return None
    encoded = _with_times(response).line()
    for raw, escaped in HTML.items():
        encoded = encoded.replace(raw, escaped)
    return encoded.decode().rstrip("\n")


def _with_times(response: Response) -> Response:
    """The same with all times as protobuf writes them: others may have other fractions or time zones."""
    flow, lost = response.flow, response.lost_events
    return msgspec.structs.replace(
        response,
        time=_canonical(response.time),
        flow=msgspec.structs.replace(flow, time=_canonical(flow.time)) if flow else None,
        lost_events=msgspec.structs.replace(lost, first=_canonical(lost.first), last=_canonical(lost.last))
        if lost
        else None,
    )


def _canonical(time: str) -> str:
    try:
        return timestamp.text(timestamp.parse(time))
    except ValueError:
        return time


def table(responses: Iterable[Response], style: Style) -> Iterator[str]:
    """The lines of the table, without identities and colours; no lines, not even headers, if there is nothing."""
    style = replace(style, paint=Paint(on=False))
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


# The ends of a flow.


def _end(flow: Flow, style: Style, *, source: bool) -> str:
    """`namespace/pod:port`; the MAC address of a packet without IP."""
    if flow.ip is None:
        ethernet = flow.ethernet
        mac = "" if ethernet is None else ethernet.source if source else ethernet.destination
        return style.paint(plain(mac), "cyan") if ethernet is not None else ""
    end = (flow.source if source else flow.destination) or Endpoint()
    service = flow.source_service if source else flow.destination_service
    names = flow.source_names if source else flow.destination_names
    address = flow.ip.source if source else flow.ip.destination
    host = plain(address if style.numeric else _name(end, service, names) or address)
    return style.paint(_with_port(host, _port(flow, source=source), style), "cyan")


def _name(end: Endpoint, service: Service | None, names: Sequence[str]) -> str:
    """A Service's namespace counts also where it has none."""
    namespace = end.namespace if service is None else service.namespace
    name = end.pod_name or (service.name if service else "")
    if name:
        return f"{namespace}/{name}" if namespace else name
    return ",".join(names)


def _with_port(host: str, port: int, style: Style) -> str:
    if not port:
        return host
    return f"{f'[{host}]' if ':' in host or '%' in host else host}:{style.paint(str(port), 'yellow')}"


def _port(flow: Flow, *, source: bool) -> int:
    ports = flow.l4.ports if flow.l4 else None
    if ports is None:
        return 0
    return ports.source_port if source else ports.destination_port


def _identity(end: Endpoint | None, style: Style) -> str:
    number = end.identity if end else 0
    return style.paint(f"({_word(hubble.RESERVED_NAMES, number, f'ID:{number}')})", "magenta")


def _word(words: Sequence[str], number: int, other: str) -> str:
    return words[number] if 0 <= number < len(words) else other


# What happened.


def _kind(flow: Flow) -> str:
    if flow.l7 is not None:
        return _l7_kind(flow)
    event = flow.event_type
    if event is None:
        return "UNKNOWN"
    sub_type = event.sub_type & 0xFF  # one byte in the datapath's events
    match event.type:
        case hubble.EventType.TRACE:
            return _word(hubble.TRACE_POINTS, sub_type, str(sub_type))
        case hubble.EventType.DROP:
            return hubble.DROP_TEXTS.get(sub_type, f"{sub_type}, 0")
        case hubble.EventType.POLICY_VERDICT:
            match_type = _word(hubble.MATCH_TYPES, flow.policy_match_type, "unknown")
            return f"policy-verdict:{match_type} {plain(flow.traffic_direction) or hubble.DIRECTIONS[0]}"
        case hubble.EventType.CAPTURE:
            return plain(flow.debug_capture_point) or "DBG_CAPTURE_POINT_UNKNOWN"
        case hubble.EventType.TRACE_SOCK:
            point = plain(flow.sock_xlate_point) or "SOCK_XLATE_POINT_UNKNOWN"
            return hubble.SOCKET_POINTS.get(point, point)
    return "UNKNOWN"


def _l7_kind(flow: Flow) -> str:
    l7 = flow.l7
    assert l7 is not None
    record = (
        "dns" if l7.dns is not None else "http" if l7.http is not None else "kafka" if l7.kafka is not None else "l7"
    )
    kind = f"{record}-{(plain(l7.type) or hubble.L7_TYPES[0]).lower()}"
    return f"{kind} {plain(l7.dns.observation_source)}" if l7.dns is not None else kind


def _verdict(flow: Flow, style: Style) -> str:
    verdict = plain(flow.verdict) or hubble.VERDICTS[0]
    colour = VERDICT_COLOURS.get(verdict)
    if flow.event_type is not None and flow.event_type.type == hubble.EventType.POLICY_VERDICT:
        verdict = JUDGED.get(verdict, verdict)
        if style.policy_names:
            verdict += _by(_policies(flow, verdict))
    return style.paint(verdict, colour) if colour else verdict


def _by(policies: Iterable[Policy]) -> str:
    names = ", ".join(f"{plain(one.name)} ({plain(one.kind)})" for one in policies if one.name and one.kind)
    return f" BY {names}" if names else ""


def _policies(flow: Flow, said: str) -> tuple[Policy, ...]:
    found = {
        ("ALLOWED", "INGRESS"): flow.ingress_allowed_by,
        ("ALLOWED", "EGRESS"): flow.egress_allowed_by,
        ("DENIED", "INGRESS"): flow.ingress_denied_by,
        ("DENIED", "EGRESS"): flow.egress_denied_by,
    }
    return found.get((said, flow.traffic_direction), ())


def _summary(flow: Flow, style: Style) -> str:
    trace = flow.ip_trace_id.trace_id if flow.ip_trace_id else ""
    before = f"IP Trace ID: {plain(trace)}; " if trace.strip("0") else ""
    auth = flow.auth_type
    if not auth or auth == "DISABLED":
        return before + plain(flow.summary)
    return f"{before}{plain(flow.summary)}; Auth: {style.paint(plain(auth), 'red' if 'FAIL' in auth else 'green')}"


# Lost events, and the state of nodes.


def _lost(response: Response, style: Style) -> str:
    cpu = (response.lost_events.cpu or 0) if response.lost_events else 0
    time = style.clock(response.time)
    return f"{time} EVENTS LOST: {_lost_source(response)} CPU({cpu}) {_lost_count(response, style)}"


def _lost_source(response: Response) -> str:
    return (plain(response.lost_events.source) if response.lost_events else "") or hubble.LOST_SOURCES[0]


def _lost_count(response: Response, style: Style) -> str:
    lost = response.lost_events
    assert lost is not None
    span = f" (first: {style.clock(lost.first)}, last: {style.clock(lost.last)})" if lost.first and lost.last else ""
    return f"{plain(lost.num_events_lost) or 0}{span}"


def status_line(response: Response, style: Style) -> str:
    status = response.node_status
    assert status is not None
    place, count = f"{style.clock(response.time)} [{plain(response.node_name)}]", len(status.node_names)
    match status.state_change:
        case "NODE_CONNECTED":
            return f"{place}: Receiving flows from {count} nodes: {_names(status)}"
        case "NODE_UNAVAILABLE":
            return f"{place}: {count} nodes are unavailable: {_names(status)}"
        case "NODE_GONE":
            return f"{place}: {count} nodes removed from cluster: {_names(status)}"
        case "NODE_ERROR":
            return f"{place}: Error {_quoted(status.message)} on {count} nodes: {_names(status)}"
    return f"{place}: unknown node status event: {plain(status.state_change)}: {_names(status)}"


def status_block(response: Response, style: Style) -> str:
    status = response.node_status
    assert status is not None
    return _lines(
        ("TIMESTAMP", style.clock(response.time)),
        ("STATE", plain(status.state_change) or "UNKNOWN_NODE_STATE"),
        ("NODES", _names(status)),
        ("MESSAGE", _quoted(status.message) if status.message else "N/A"),
    )


def _quoted(text: str) -> str:
    return plain(json.dumps(text, ensure_ascii=False))


def _names(status: NodeStatus) -> str:
    """The first names, at least one and up to about 50 characters, and the number of the others."""
    lengths = accumulate(len(name.encode()) + len(", ") for name in status.node_names)
    shown = max(1, sum(length <= MAX_NAMES for length in lengths))
    more = len(status.node_names) - shown
    return plain(", ".join(status.node_names[:shown])) + (f" (and {more} more)" if more > 0 else "")


# Printing.

Form = Callable[[Response, Style], "str | None"]
FORMS: Final[dict[str, tuple[Form, Form]]] = {
    "compact": (compact, status_line),
    "dict": (block, status_block),
    "json": (line, line),
}
"""Output → the text of a flow or lost events, and that of the state of nodes."""


class Printer:
    """Prints each response as it arrives: flows on `out`, the state of nodes on `err`."""

    def __init__(self, output: str, style: Style, out: TextIO, err: TextIO | None) -> None:
        self._flow, self._status = FORMS[output]
        self._style, self._out, self._err = style, out, err
        self._separate = output == "dict"
        self._printed = False

    def print(self, response: Response) -> None:
        status = response.node_status
        if status is None:
            self._write(self._flow(response, self._style), self._out)
        elif self._style.debug or status.state_change in NODE_PROBLEMS:
            self._write(self._status(response, self._style), self._err)

    def _write(self, text: str | None, stream: TextIO | None) -> None:
        if text is None:
            return
        if stream is not None:
            before = f"{SEPARATOR}\n" if self._separate and self._printed else ""
            print(f"{before}{text}", file=stream, flush=True)
        self._printed = True
