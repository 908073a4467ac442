"""Encodes events as protobuf: the bytes of `observer.GetFlowsResponse`.

Encoded messages may be concatenated: a later field is added to the earlier ones. So the flows of one template share the
bytes of their fixed fields, and only the varying ones are written for each. Followers with equal masks share an
encoder, and it keeps what it made for a moment: each flow is encoded once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from weakref import WeakValueDictionary

import msgspec

from l7proxy.flows import timestamp
from l7proxy.flows.batch import NO_STATUS
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.flow import Flow
from l7proxy.flows.ring import NOT_DELIVERED
from l7proxy.flows.template import FlowTemplate, TemplatedFlow
from l7proxy.hubble import mask as masks
from l7proxy.hubble import wire
from l7proxy.hubble.api.flow import flow_pb2
from l7proxy.hubble.api.observer import observer_pb2
from l7proxy.model.cache import remember

REMEMBERED: Final = 1024
"""Templates whose fixed bytes an encoder keeps."""
WINDOW: Final = 1024
"""Encoded events that an encoder keeps for its other users: they read the same events at nearly the same time."""
_VARYING: Final[Mapping[str, Any]] = {
    "time": "", "uuid": "", "l4": None, "l7": None, "trace_context": None, "summary": "",
}  # fmt: skip
_VARYING_NAMES: Final = ("time", "uuid", "l4", "l7", "trace_context", "Summary")


def _tag(message: Any, name: str, kind: int = wire.LENGTH_DELIMITED) -> str:
    return wire.tag(message.DESCRIPTOR, name, kind).decode("latin-1")


_FLOW: Final = _tag(observer_pb2.GetFlowsResponse, "flow")
_SENT: Final = _tag(observer_pb2.GetFlowsResponse, "time")
_TIME: Final = _tag(flow_pb2.Flow, "time")
_UUID: Final = _tag(flow_pb2.Flow, "uuid")
_L4: Final = _tag(flow_pb2.Flow, "l4")
_L7: Final = _tag(flow_pb2.Flow, "l7")
_TRACE_CONTEXT: Final = _tag(flow_pb2.Flow, "trace_context")
_SUMMARY: Final = _tag(flow_pb2.Flow, "Summary")
_TCP: Final = _tag(flow_pb2.Layer4, "TCP")
_LATENCY: Final = _tag(flow_pb2.Layer7, "latency_ns", wire.VARINT)
_HTTP: Final = _tag(flow_pb2.Layer7, "http")
_CODE: Final = _tag(flow_pb2.HTTP, "code", wire.VARINT)
_URL: Final = _tag(flow_pb2.HTTP, "url")
_PARENT: Final = _tag(flow_pb2.TraceContext, "parent")
_TRACE_ID: Final = _tag(flow_pb2.TraceParent, "trace_id")
_LENGTHS: Final = tuple(wire.varint(number).decode("latin-1") for number in range(4096))


class Encoder:
    """`mask`: the fields that the client wants; empty: all. `node_name`: of events that name none."""

    def __init__(self, mask: masks.Mask, node_name: str) -> None:
        self._node_name = node_name
        self._wanted = [not mask or name in mask for name in _VARYING_NAMES]
        varying = {name: inside for name, inside in mask.items() if name in _VARYING_NAMES}
        self._parts = _writer(varying) if any(varying.values()) else None
        """Only parts of a varying field are wanted."""
        self._whole = _writer(mask)
        self._prepared: dict[FlowTemplate, _Prepared] = {}
        self._answers: dict[FlowTemplate, _Prepared] = {}
        self._recent: dict[int, tuple[Event, bytes]] = {}
        self._users = 0

    def __enter__(self) -> Encoder:
        """While several use it, each event is encoded once."""
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        self._recent.clear()

    def responses(self, events: list[Event]) -> list[bytes]:
        """Of each event, in order."""
        if self._users < 2:
            return [self.response(event) for event in events]
        recent, made = self._recent, []
        for event in events:
            known = recent.get(id(event))  # of this object: it is kept alive with its bytes
            if known is None:
                known = remember(recent, id(event), (event, self.response(event)), WINDOW)
            made.append(known[1])
        return made

    def response(self, event: Event) -> bytes:
        """`time` and `node_name` are set whatever the mask: Hubble Relay sorts by them. A flow that cannot be encoded
        (a worker sent a number that the API has no room for) is reported as lost."""
        try:
            if isinstance(event, TemplatedFlow):
                return self._templated(event)
            flow = event.flow()
            if flow is not None:
                named = _named(flow.node_name or self._node_name)
                return _wrapped(self._whole(flow).decode("latin-1"), named, _moment(flow.time_ns))
        except ValueError:
            return _lost(Lost(1, NOT_DELIVERED, event.time_ns), self._node_name)
        return _lost(event, self._node_name)

    def _templated(self, event: TemplatedFlow) -> bytes:
        """Hot."""
        known = self._prepared if event.status == NO_STATUS else self._answers
        prepared = known.get(event.shape)
        if prepared is None:
            prepared = remember(known, event.shape, self._prepare(event), REMEMBERED)
        moment = _moment(event.time_ns)
        if self._parts is not None:
            return _wrapped(prepared.fixed + self._parts(event.varying()).decode("latin-1"), prepared.named, moment)
        return _wrapped(prepared.fixed + prepared.varying(event, moment, self._wanted), prepared.named, moment)

    def _prepare(self, event: TemplatedFlow) -> _Prepared:
        model = event.model
        fixed = self._whole(msgspec.structs.replace(model, **_VARYING))
        return _Prepared(fixed.decode("latin-1"), _named(model.node_name or self._node_name), event)


class Encoders:
    """One encoder for all followers with the same mask, as long as there is one."""

    def __init__(self, node_name: str) -> None:
        self._node_name = node_name
        self._known: WeakValueDictionary[str, Encoder] = WeakValueDictionary()

    def of(self, mask: masks.Mask) -> Encoder:
        key = repr(mask)
        encoder = self._known.get(key)
        if encoder is None:
            encoder = self._known[key] = Encoder(mask, self._node_name)
        return encoder


class _Prepared:
    """The requests, or the responses, of one template: what is the same in each. Texts hold bytes, as Latin-1: they are
    faster to put together than bytes, and what a templated flow adds is ASCII."""

    __slots__ = (
        "_answer",
        "_http",
        "_method",
        "_ports",
        "_protocol",
        "_server_port",
        "_type",
        "_uuid",
        "fixed",
        "named",
    )

    def __init__(self, fixed: str, named: str, event: TemplatedFlow) -> None:
        shape = event.shape
        self.fixed = fixed
        self.named = named
        self._answer = event.status != NO_STATUS
        self._method = shape.method
        self._protocol = shape.protocol
        self._server_port = shape.server_port
        self._uuid = event.model.uuid
        http = flow_pb2.HTTP(method=shape.method, protocol=shape.protocol)
        self._http = http.SerializeToString().decode("latin-1")
        kind = flow_pb2.Layer7(type=flow_pb2.RESPONSE if self._answer else flow_pb2.REQUEST)
        self._type = kind.SerializeToString().decode("latin-1")
        self._ports: dict[str, str] = {}

    def varying(self, event: TemplatedFlow, moment: str, wanted: list[bool]) -> str:
        """The fields that `TemplatedFlow.varying` has. Hot."""
        time, uuid, l4, l7, trace_context, summary = wanted
        made = f"{_TIME}{_length(len(moment))}{moment}" if time else ""
        if uuid:
            text = f"{self._uuid}{event.number}"
            made = f"{made}{_UUID}{_length(len(text))}{text}"
        if l4:
            made += self._ports.get(event.port) or remember(self._ports, event.port, self._l4(event), REMEMBERED)
        if trace_context and event.trace_id:
            made += _traced(event.trace_id)
        url, protocol = event.url, self._protocol
        if self._answer:
            status, latency = event.status, event.latency_ns
            if status >> 32 or latency >> 64:
                raise ValueError("the API has no room for this number")
            if l7:
                http = f"{self._http}{_CODE}{_varint(status)}{_URL}{_length(len(url))}{url}"
                body = f"{self._type}{_LATENCY}{_varint(latency)}{_HTTP}{_length(len(http))}{http}"
                made = f"{made}{_L7}{_length(len(body))}{body}"
            if summary:
                said = f"{protocol} {status} {latency // 1_000_000}ms ({self._method} {url})"
                made = f"{made}{_SUMMARY}{_length(len(said))}{said}"
            return made
        if l7:
            http = f"{self._http}{_URL}{_length(len(url))}{url}"
            body = f"{self._type}{_HTTP}{_length(len(http))}{http}"
            made = f"{made}{_L7}{_length(len(body))}{body}"
        if summary:
            said = f"{protocol} {self._method} {url}"
            made = f"{made}{_SUMMARY}{_length(len(said))}{said}"
        return made

    def _l4(self, event: TemplatedFlow) -> str:
        client, server = int(event.port), self._server_port
        source, destination = (server, client) if self._answer else (client, server)
        ports = flow_pb2.TCP(source_port=source, destination_port=destination).SerializeToString().decode("latin-1")
        tcp = f"{_TCP}{_length(len(ports))}{ports}"
        return f"{_L4}{_length(len(tcp))}{tcp}"


def _traced(trace_id: str) -> str:
    parent = f"{_TRACE_ID}{_length(len(trace_id))}{trace_id}"
    context = f"{_PARENT}{_length(len(parent))}{parent}"
    return f"{_TRACE_CONTEXT}{_length(len(context))}{context}"


def _writer(mask: masks.Mask) -> wire.Writer:
    return wire.writer(flow_pb2.Flow.DESCRIPTOR, Flow, mask)


def _length(number: int) -> str:
    return _LENGTHS[number] if number < 4096 else _varint(number)


def _varint(number: int) -> str:
    return wire.varint(number).decode("latin-1")


def _moment(time_ns: int) -> str:
    return wire.moment(time_ns).decode("latin-1")


def _lost(event: Event, node_name: str) -> bytes:
    source, first_ns = "UNKNOWN_LOST_EVENT_SOURCE", event.time_ns
    if isinstance(event, Lost):
        source, first_ns = event.source, event.first_ns or event.time_ns
    times = (first_ns, event.time_ns)
    first, time = ({"seconds": ns // timestamp.SECOND, "nanos": ns % timestamp.SECOND} for ns in times)
    lost = {"source": source, "num_events_lost": event.lost, "first": first, "last": time}
    response: Any = {"lost_events": lost, "node_name": node_name, "time": time}
    return observer_pb2.GetFlowsResponse(**response).SerializeToString()


def _named(node_name: str) -> str:
    return observer_pb2.GetFlowsResponse(node_name=node_name).SerializeToString().decode("latin-1")


def _wrapped(flow: str, named: str, moment: str) -> bytes:
    return f"{_FLOW}{_length(len(flow))}{flow}{named}{_SENT}{_length(len(moment))}{moment}".encode("latin-1")
