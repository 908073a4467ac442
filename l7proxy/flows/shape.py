"""Flows of HTTP in waiting: a line is written only when somebody wants it, and then by filling in a shape.

All requests (or all answers) between the same ends, judged alike, give flows that differ in a few things: time, uuid,
the client's port, method, URL, protocol and, for answers, status and latency. A Shape is the line of one such flow, as
the enricher makes it, with these cut out. Law: the line of a Shaped is the line of the flow that the enricher makes of
its record, the uuid aside. What does not fit (headers, a query, a letter that JSON escapes) goes the enricher's way.

uuids are of version 4 in form: random bits of this process, and a number that grows.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

import msgspec

from l7proxy.errors import LinkError
from l7proxy.flows import timestamp
from l7proxy.flows.batch import Answered, Asked, Flows, Party
from l7proxy.flows.event import Enricher
from l7proxy.flows.flow import Flow, Http, Layer4, Layer7, Lost, Ports
from l7proxy.flows.records import Conn, HttpRequest, HttpResponse, Judgement

REMEMBERED: Final = 12288
"""Shapes kept per picture, some 5 KB each; past that all are forgotten. A pod can choose the keys, and many rules
make many shapes."""

_HTTP: Final = (Asked, Answered)
_PLAIN: Final = re.compile(r"[!$->A-\[\]-~]++ [!$->A-\[\]-~]++ [!$->A-\[\]-~]++").fullmatch
"""`METHOD URL PROTOCOL` without what JSON escapes (\" and \\) or an enricher cuts off (after @, ? and #)."""
_QUERY_TOO: Final = re.compile(r"[!$->A-\[\]-~]++ [!$-?A-\[\]-~]++ [!$->A-\[\]-~]++").fullmatch
"""The same for an enricher that leaves queries in."""
_PORT: Final = 9_007_199_254_740_881
_STATUS: Final = 9_007_199_254_740_847
_TIME, _UUID, _LATENCY, _METHOD, _URL, _PROTOCOL, _SUMMARY = (f"\ue000{mark}" for mark in "tunmlps")
_IN_ASKED: Final = (_TIME, _UUID, str(_PORT), _METHOD, _URL, _PROTOCOL, _SUMMARY, _TIME)
_IN_ANSWERED: Final = (
    _TIME, _UUID, str(_PORT), _LATENCY, str(_STATUS), _METHOD, _URL, _PROTOCOL, _SUMMARY, _TIME,
)  # fmt: skip
"""Marks of what varies, in the order in which a line has it: a private use character, numbers past any port."""


class Shape(NamedTuple):
    """The pieces of both lines between what varies, and both flows without it: their uuids are mere beginnings."""

    asked: tuple[str, ...]
    answered: tuple[str, ...]
    request: Flow
    response: Flow
    server_port: int


class Shaped:
    """One record with its shape. `number` makes its uuid."""

    __slots__ = ("number", "port", "record", "shape")

    def __init__(self, shape: Shape, record: Asked | Answered, port: int, number: int) -> None:
        self.shape = shape
        self.record = record
        self.port = port
        self.number = number

    @property
    def time_ns(self) -> int:
        return self.record.time_ns

    @property
    def time(self) -> str:
        return timestamp.text(self.record.time_ns)

    def line(self) -> bytes:
        """As `Flow.line`."""
        record = self.record
        time, method, url, protocol = timestamp.text(record.time_ns), record.method, record.url, record.protocol
        if isinstance(record, Asked):
            a, b, c, d, e, f, g, h, i = self.shape.asked
            return (
                f"{a}{time}{b}{self.number}{c}{self.port}{d}{method}{e}{url}{f}{protocol}{g}"
                f"{protocol} {method} {url}{h}{time}{i}"
            ).encode()
        a, b, c, d, e, f, g, h, i, j, k = self.shape.answered
        latency, status = record.latency_ns, record.status
        return (
            f"{a}{time}{b}{self.number}{c}{self.port}{d}{latency}{e}{status}{f}{method}{g}{url}{h}{protocol}{i}"
            f"{protocol} {status} {latency // 1_000_000}ms ({method} {url}){j}{time}{k}"
        ).encode()

    def flow(self) -> Flow:
        """The flow that `line` is the line of."""
        shape, record = self.shape, self.record
        method, url, protocol = record.method, record.url, record.protocol
        if isinstance(record, Asked):
            model, ports = shape.request, Ports(source_port=self.port, destination_port=shape.server_port)
            l7 = Layer7(type="REQUEST", http=Http(method=method, url=url, protocol=protocol))
            summary = f"{protocol} {method} {url}"
        else:
            latency, status = record.latency_ns, record.status
            model, ports = shape.response, Ports(source_port=shape.server_port, destination_port=self.port)
            http = Http(code=status, method=method, url=url, protocol=protocol)
            l7 = Layer7(type="RESPONSE", latency_ns=str(latency), http=http)
            summary = f"{protocol} {status} {latency // 1_000_000}ms ({method} {url})"
        return msgspec.structs.replace(
            model,
            time=timestamp.text(record.time_ns),
            uuid=f"{model.uuid}{self.number}",
            l4=Layer4(tcp=ports),
            l7=l7,
            summary=summary,
        )


Item: TypeAlias = Flow | Shaped | Lost
"""What the bus carries."""


class Uuids:
    """Numbers of flows, and what stands before them in a uuid. They have twelve decimal digits: hexadecimal ones, too,
    and the quickest to write."""

    def __init__(self) -> None:
        self.prefix = str(uuid.uuid4())[:-12]
        self.taken = 10**11


class Shaper:
    """Makes the items of whole batches, by the names of one picture. Thrown away with it, as its enricher is."""

    def __init__(self, enricher: Enricher, uuids: Uuids, *, remembered: int = REMEMBERED) -> None:
        self._enricher = enricher
        self._plain = _QUERY_TOO if enricher.query else _PLAIN
        self._uuids = uuids
        self._remembered = remembered
        self._shapes: dict[tuple[str, int, str, int, int, int, int], Shape | None] = {}
        self._judgements: dict[Judgement, int] = {}
        self._numbered = 0

    def items(self, flows: Flows) -> list[Flow | Shaped]:
        """One per record, in their order. LinkError when one refers to what is not in the batch."""
        try:
            known = [self._known(judgement) for judgement in flows.judgements]
            shapes = [self._shape(party, flows.judgements, known) for party in flows.parties]
            return self._told(flows, shapes)
        except IndexError as error:
            raise LinkError("a record refers to a party or a judgement that is not in its batch") from error

    def _told(self, flows: Flows, shapes: list[Shape | None]) -> list[Flow | Shaped]:
        """Hot: once per record."""
        made: list[Flow | Shaped] = []
        parties, number = flows.parties, self._uuids.taken
        for told in flows.told:
            if isinstance(told, _HTTP):
                shape = shapes[told.party]
                if shape is not None and _fits(told, self._plain):
                    number += 1
                    made.append(Shaped(shape, told, parties[told.party].conn.source_port, number))
                    continue
            made.append(self._enricher.flow(flows.record(told)))
        self._uuids.taken = number
        return made

    def _known(self, judgement: Judgement) -> int:
        """Hashing a judgement is dear, and a batch has few: a number for each."""
        number = self._judgements.get(judgement)
        if number is None:
            self._numbered += 1  # never used again: a key may outlive the forgetting
            number = self._judgements[judgement] = self._numbered
        return number

    def _shape(self, party: Party, judgements: tuple[Judgement, ...], known: list[int]) -> Shape | None:
        conn, place = party.conn, party.judgement
        key = (
            conn.source,
            conn.source_identity,
            conn.destination,
            conn.destination_identity,
            conn.destination_port,
            conn.protocol,
            known[place],
        )
        try:
            return self._shapes[key]
        except KeyError:
            shape = cut(self._enricher, self._uuids.prefix, conn, judgements[place])
        if len(self._shapes) >= self._remembered:
            self._shapes.clear()
            self._judgements.clear()
        self._shapes[key] = shape
        return shape


def _fits(record: Asked | Answered, plain: Callable[[str], object]) -> bool:
    """Nothing in it that a shape has no place for; a latency of 0 is not written at all."""
    if record.headers or (record.remarks if isinstance(record, Asked) else min(record.latency_ns, record.status) <= 0):
        return False
    return plain(f"{record.method} {record.url} {record.protocol}") is not None


def cut(enricher: Enricher, uuids: str, conn: Conn, judgement: Judgement) -> Shape | None:
    """The shape of what the enricher makes of requests and answers between these; None when a mark is not unique."""
    asked = msgspec.structs.replace(enricher.flow(HttpRequest(0, conn, judgement, "", "", "")), uuid=uuids)
    answered = msgspec.structs.replace(enricher.flow(HttpResponse(0, conn, judgement, "", "", "", 0, 0)), uuid=uuids)
    if asked.l4 is None or asked.l4.tcp is None or not conn.source_port:
        return None
    http = Http(method=_METHOD, url=_URL, protocol=_PROTOCOL)
    answer = Http(code=_STATUS, method=_METHOD, url=_URL, protocol=_PROTOCOL)
    into, back = (
        Ports(source_port=_PORT, destination_port=conn.destination_port),
        Ports(source_port=conn.destination_port, destination_port=_PORT),
    )
    first = _pieces(asked, into, Layer7(type="REQUEST", http=http), _IN_ASKED)
    second = _pieces(answered, back, Layer7(type="RESPONSE", latency_ns=_LATENCY, http=answer), _IN_ANSWERED)
    return Shape(first, second, asked, answered, conn.destination_port) if first and second else None


def _pieces(flow: Flow, ports: Ports, l7: Layer7, marks: tuple[str, ...]) -> tuple[str, ...]:
    """The line of `flow` cut at the marks; nothing when a label, say, holds one."""
    marked = msgspec.structs.replace(
        flow, time=_TIME, uuid=flow.uuid + _UUID, l4=Layer4(tcp=ports), l7=l7, summary=_SUMMARY
    )
    rest = marked.line().decode()
    if any(rest.count(mark) != marks.count(mark) for mark in marks):
        return ()
    pieces = []
    for mark in marks:
        piece, _, rest = rest.partition(mark)
        pieces.append(piece)
    return (*pieces, rest)
