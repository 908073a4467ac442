"""HTTP flows from templates: a JSON line is made only when it is read, by filling in a template.

The flows of all requests (or all responses) with the same ends, verdict, method and protocol differ in a few fields
only: time, uuid, the client's port, URL, the trace id if there is one and, for responses, status and latency. A
FlowTemplate is the enricher's line of one such flow with these fields cut out. Law: the line of a TemplatedFlow equals
that of the flow that the enricher makes of its record, except for the uuid. Records that do not fit (headers, a query,
a character that JSON escapes, an unknown method) go through the enricher.

uuids have the form of version 4: random bits of this process, and a counter.
"""

from __future__ import annotations

import uuid
from typing import Final, TypeAlias

import msgspec

from l7proxy.errors import LinkError
from l7proxy.flows import timestamp
from l7proxy.flows.batch import NO_STATUS, FlowContext, Flows
from l7proxy.flows.enrich import Enricher, trace_context
from l7proxy.flows.event import Event
from l7proxy.flows.flow import Flow, Http, Layer4, Layer7, Ports
from l7proxy.flows.records import HttpRequest, HttpResponse
from l7proxy.model.cache import remember
from l7proxy.model.policy_verdict import PolicyVerdict

REMEMBERED: Final = 12288
"""Templates cached per policy snapshot, about 5 KB each: a pod can choose the keys, and many rules make many."""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
PROTOCOLS: Final = frozenset({"HTTP/1.0", "HTTP/1.1", "HTTP/2"})
"""Only these have templates, so that a client cannot create templates by inventing methods."""

_PLAIN: Final = bytes(letter for letter in range(0x21, 0x7F) if letter not in b'"\\@?#')
"""Characters of a URL that need neither JSON escapes (" and \\) nor redaction by the enricher (@, ? and #)."""
_QUERY_TOO: Final = _PLAIN + b"?"
"""The same for an enricher that keeps queries."""
_PORT: Final = 9_007_199_254_740_881
_STATUS: Final = 9_007_199_254_740_847
_TIME, _UUID, _LATENCY, _MILLISECONDS, _URL, _TRACE = (f"\ue000{mark}" for mark in "tulmpx")
_IN_ASKED: Final = (_TIME, _UUID, str(_PORT), _URL, _URL, _TIME)
_IN_ANSWERED: Final = (
    _TIME, _UUID, str(_PORT), _LATENCY, str(_STATUS), _URL, str(_STATUS), _MILLISECONDS, _URL, _TIME,
)  # fmt: skip
"""Placeholders of the varying fields, in line order: a private use character, or a number above any port."""
_ASKED_TRACE, _ANSWERED_TRACE = 4, 6
"""Where a trace id is, in lines that have one."""
_IN_ASKED_TRACED: Final = (*_IN_ASKED[:_ASKED_TRACE], _TRACE, *_IN_ASKED[_ASKED_TRACE:])
_IN_ANSWERED_TRACED: Final = (*_IN_ANSWERED[:_ANSWERED_TRACE], _TRACE, *_IN_ANSWERED[_ANSWERED_TRACE:])


class FlowTemplate:
    """The fixed pieces of both lines, and both flows without the varying fields: their uuids are only prefixes.

    `traced_request` and `traced_response` are what comes before and after a trace id, in place of the piece in which
    the other lines have none.
    """

    __slots__ = (
        "answered", "asked", "method", "protocol", "request", "response", "server_port", "traced_request",
        "traced_response",
    )  # fmt: skip

    def __init__(
        self,
        asked: tuple[str, ...],
        answered: tuple[str, ...],
        traced_request: tuple[str, str],
        traced_response: tuple[str, str],
        request: Flow,
        response: Flow,
        server_port: int,
        method: str,
        protocol: str,
    ) -> None:
        self.asked = asked
        self.answered = answered
        self.traced_request = traced_request
        self.traced_response = traced_response
        self.request = request
        self.response = response
        self.server_port = server_port
        self.method = method
        self.protocol = protocol


class TemplatedFlow:
    """One record with its template; `status` is NO_STATUS for a request. `number` is the end of its uuid."""

    __slots__ = ("latency_ns", "number", "port", "shape", "status", "time_ns", "trace_id", "url")

    def __init__(
        self,
        shape: FlowTemplate,
        port: str,
        time_ns: int,
        url: str,
        status: int,
        latency_ns: int,
        number: int,
        trace_id: str,
    ) -> None:
        self.shape = shape
        self.port = port
        self.time_ns = time_ns
        self.url = url
        self.status = status
        self.latency_ns = latency_ns
        self.number = number
        self.trace_id = trace_id

    @property
    def lost(self) -> int:
        return 0

    def line(self) -> bytes:
        """As `Flow.line`. Hot."""
        time, url, port = timestamp.text(self.time_ns), self.url, self.port
        if self.status == NO_STATUS:
            a, b, c, d, e, f, g = self.shape.asked
            if self.trace_id:
                e = self.trace_id.join(self.shape.traced_request)
            return f"{a}{time}{b}{self.number}{c}{port}{d}{url}{e}{url}{f}{time}{g}".encode()
        a, b, c, d, e, f, g, h, i, j, k = self.shape.answered
        status, latency = str(self.status), self.latency_ns
        if self.trace_id:
            g = self.trace_id.join(self.shape.traced_response)
        return (
            f"{a}{time}{b}{self.number}{c}{port}{d}{latency}{e}{status}{f}{url}"
            f"{g}{status}{h}{latency // 1_000_000}{i}{url}{j}{time}{k}"
        ).encode()

    @property
    def is_request(self) -> bool:
        return self.status == NO_STATUS

    @property
    def model(self) -> Flow:
        """The flow without the varying fields: those that `varying` sets are empty or unfinished."""
        return self.shape.request if self.is_request else self.shape.response

    def flow(self) -> Flow:
        """The flow that `line` encodes."""
        return self._filling(self.model)

    def varying(self) -> Flow:
        """Only the fields in which flows of one template differ."""
        return self._filling(Flow(uuid=self.model.uuid))

    def _filling(self, model: Flow) -> Flow:
        shape, status, latency = self.shape, self.status, self.latency_ns
        if status == NO_STATUS:
            ports = Ports(source_port=int(self.port), destination_port=shape.server_port)
            l7, summary = _of_request(shape.method, self.url, shape.protocol)
        else:
            ports = Ports(source_port=shape.server_port, destination_port=int(self.port))
            l7, summary = _of_response(
                shape.method, self.url, shape.protocol, status, str(latency), str(latency // 1_000_000)
            )
        return _filled(model, timestamp.text(self.time_ns), str(self.number), ports, l7, summary, self.trace_id)


class Uuids:
    """The uuid prefix and the counter of flows. The counter has twelve decimal digits: they are valid hexadecimal
    digits, and the fastest to write."""

    def __init__(self) -> None:
        self.prefix = str(uuid.uuid4())[:-12]
        self.taken = 10**11


_Key: TypeAlias = tuple[str, int, str, int, int, int, int, str, str]


class TemplateCache:
    """Makes the ring items of whole batches, with the names of one policy snapshot. Discarded with the enricher."""

    def __init__(self, enricher: Enricher, uuids: Uuids, *, remembered: int = REMEMBERED) -> None:
        self._enricher = enricher
        self._letters = _QUERY_TOO if enricher.query else _PLAIN
        self._uuids = uuids
        self._remembered = remembered
        self._shapes: dict[_Key, FlowTemplate | None] = {}
        self._policy_verdicts: dict[PolicyVerdict, int] = {}
        self._numbered = 0

    def items(self, flows: Flows) -> list[Event]:
        """One per record, in order. LinkError when one is invalid, or refers to an entry that is not in the batch."""
        try:
            known = [self._known(policy_verdict) for policy_verdict in flows.policy_verdicts]
            shapes = [self._shape(party, flows.policy_verdicts, known) for party in flows.parties]
            return self._events(flows, shapes)
        except LookupError as error:
            raise LinkError("a record refers to an entry that is not in its batch") from error
        except ValueError as error:
            raise LinkError(f"a record is invalid: {error}") from error

    def _events(self, flows: Flows, shapes: list[FlowTemplate | None]) -> list[Event]:
        """Hot: once per record. Most batches have only plain URLs, so all URLs are checked at once first."""
        made: list[Event] = []
        ports = [str(party.conn.source_port) for party in flows.parties]
        times, parties, urls, statuses, latencies = (
            flows.times, flows.party, flows.urls, flows.statuses, flows.latencies,
        )  # fmt: skip
        plain = self._plain("".join(urls))
        special = {*flows.headers, *flows.remarks}
        trace_ids = flows.trace_ids
        number: int = self._uuids.taken
        for place in range(len(times)):
            party, url, status, latency = parties[place], urls[place], statuses[place], latencies[place]
            shape = shapes[party] if party >= 0 else None
            if (
                shape is None
                or not url
                or not (plain or self._plain(url))
                or (status != NO_STATUS and (status <= 0 or latency <= 0))  # a zero is omitted from the JSON
                or (special and place in special)
            ):
                made.append(self._enricher.flow(flows.record(place)))
                continue
            number += 1
            trace_id = trace_ids.get(place, "") if trace_ids else ""
            made.append(TemplatedFlow(shape, ports[party], times[place], url, status, latency, number, trace_id))
        self._uuids.taken = number
        return made

    def _plain(self, letters: str) -> bool:
        """Whether the text can be inserted as it is."""
        return letters.isascii() and not letters.encode().translate(None, self._letters)

    def _known(self, policy_verdict: PolicyVerdict) -> int:
        """A number for each verdict: hashing a verdict is slow, and a batch has few."""
        number = self._policy_verdicts.get(policy_verdict)
        if number is None:
            self._numbered += 1  # never reused: a key may outlive a cleared cache
            number = remember(self._policy_verdicts, policy_verdict, self._numbered, self._remembered)
        return number

    def _shape(self, party: FlowContext, policy_verdicts: list[PolicyVerdict], known: list[int]) -> FlowTemplate | None:
        conn, place = party.conn, party.policy_verdict
        if not conn.source_port:  # a zero is omitted from the JSON, and templates serve all ports
            return None
        key: _Key = (
            conn.source,
            conn.source_identity,
            conn.destination,
            conn.destination_identity,
            conn.destination_port,
            conn.protocol,
            known[place],
            party.method,
            party.protocol,
        )
        try:
            return self._shapes[key]
        except KeyError:
            shape = cut(self._enricher, self._uuids.prefix, party, policy_verdicts[place])
        return remember(self._shapes, key, shape, self._remembered)


def cut(enricher: Enricher, uuids: str, party: FlowContext, policy_verdict: PolicyVerdict) -> FlowTemplate | None:
    """The template of the flows of this context. None when a placeholder is not unique, or the client chose a method or
    protocol without templates."""
    conn, method, protocol = party.conn, party.method, party.protocol
    if method not in METHODS or protocol not in PROTOCOLS:
        return None
    asked = enricher.flow(HttpRequest(0, conn, policy_verdict, method, "", protocol))
    answered = enricher.flow(HttpResponse(0, conn, policy_verdict, method, "", protocol, 0, 0))
    asked, answered = (msgspec.structs.replace(flow, uuid=uuids) for flow in (asked, answered))
    if asked.l4 is None or asked.l4.tcp is None:
        return None
    there = Ports(source_port=_PORT, destination_port=conn.destination_port)
    back = Ports(source_port=conn.destination_port, destination_port=_PORT)
    of_request = _of_request(method, _URL, protocol)
    of_response = _of_response(method, _URL, protocol, _STATUS, _LATENCY, _MILLISECONDS)
    first = _pieces(asked, there, *of_request, _IN_ASKED)
    second = _pieces(answered, back, *of_response, _IN_ANSWERED)
    first_traced = _pieces(asked, there, *of_request, _IN_ASKED_TRACED, _TRACE)
    second_traced = _pieces(answered, back, *of_response, _IN_ANSWERED_TRACED, _TRACE)
    if not (first and second and first_traced and second_traced):
        return None
    before, after = first_traced[_ASKED_TRACE : _ASKED_TRACE + 2]
    earlier, later = second_traced[_ANSWERED_TRACE : _ANSWERED_TRACE + 2]
    return FlowTemplate(
        first, second, (before, after), (earlier, later), asked, answered, conn.destination_port, method, protocol
    )


def _of_request(method: str, url: str, protocol: str) -> tuple[Layer7, str]:
    """Layer 7 and summary of a request's flow."""
    http = Http(method=method, url=url, protocol=protocol)
    return Layer7(type="REQUEST", http=http), f"{protocol} {method} {url}"


def _of_response(
    method: str, url: str, protocol: str, status: int, latency_ns: str, milliseconds: str
) -> tuple[Layer7, str]:
    """Layer 7 and summary of a response's flow."""
    http = Http(code=status, method=method, url=url, protocol=protocol)
    layer7 = Layer7(type="RESPONSE", latency_ns=latency_ns, http=http)
    return layer7, f"{protocol} {status} {milliseconds}ms ({method} {url})"


def _filled(model: Flow, time: str, number: str, ports: Ports, l7: Layer7, summary: str, trace_id: str) -> Flow:
    return msgspec.structs.replace(
        model,
        time=time,
        uuid=model.uuid + number,
        l4=Layer4(tcp=ports),
        l7=l7,
        trace_context=trace_context(trace_id),
        summary=summary,
    )


def _pieces(
    flow: Flow, ports: Ports, l7: Layer7, summary: str, marks: tuple[str, ...], trace_id: str = ""
) -> tuple[str, ...]:
    """The line of `flow` cut at the placeholders; empty when another field, such as a label, contains one."""
    rest = _filled(flow, _TIME, _UUID, ports, l7, summary, trace_id).line().decode()
    if any(rest.count(mark) != marks.count(mark) for mark in marks):
        return ()
    pieces = []
    for mark in marks:
        piece, _, rest = rest.partition(mark)
        pieces.append(piece)
    return (*pieces, rest)
