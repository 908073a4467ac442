"""Encodes events as protobuf: the bytes of `observer.GetFlowsResponse`.

The structs of `flows.flow` have the API's names and the values of its JSON mapping; few differ in a message's
constructor. Encoded messages may be concatenated: a later field is added to the earlier ones. So the flows of one
template share the bytes of their fixed fields, and only the varying ones are encoded for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from l7proxy.flows import timestamp
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.flow import Flow
from l7proxy.flows.ring import NOT_DELIVERED
from l7proxy.flows.template import FlowTemplate, TemplatedFlow
from l7proxy.hubble import mask as masks
from l7proxy.hubble.api.flow import flow_pb2
from l7proxy.hubble.api.observer import observer_pb2
from l7proxy.model.cache import remember

REMEMBERED: Final = 1024
"""Templates whose fixed bytes an encoder keeps."""
POLICIES: Final = ("ingress_allowed_by", "egress_allowed_by", "ingress_denied_by", "egress_denied_by")
_L7_TYPES: Final[Mapping[str, Any]] = {"REQUEST": flow_pb2.REQUEST, "RESPONSE": flow_pb2.RESPONSE}
_FLOW: Final = observer_pb2.GetFlowsResponse.FLOW_FIELD_NUMBER << 3 | 2  # wire type 2: length-delimited
_VARYING: Final[Mapping[str, Any]] = {"time": "", "uuid": "", "l4": None, "l7": None, "summary": ""}
_VARYING_NAMES: Final = ("time", "uuid", "l4", "l7", "Summary")


class Encoder:
    """`mask`: the fields that the client wants; empty: all. `node_name`: of events that name none."""

    def __init__(self, mask: masks.Mask, node_name: str) -> None:
        self._mask = mask
        self._node_name = node_name
        self._unwanted = [name for name in _VARYING_NAMES if mask and name not in mask]
        self._in_parts = any(mask.get(name) for name in _VARYING_NAMES)
        """Only parts of a varying field are wanted."""
        self._fixed: dict[tuple[FlowTemplate, bool], tuple[bytes, bytes]] = {}

    def response(self, event: Event) -> bytes:
        """`time` and `node_name` are set whatever the mask: Hubble Relay sorts by them. A flow that cannot be encoded
        (a worker sent a number that the API has no room for) is reported as lost."""
        try:
            if isinstance(event, TemplatedFlow):
                return self._templated(event)
            flow = event.flow()
            if flow is not None:
                return _wrapped(self._encoded(flow), _named(flow.node_name or self._node_name), flow.time_ns)
        except ValueError:
            return _lost(Lost(1, NOT_DELIVERED, event.time_ns), self._node_name)
        return _lost(event, self._node_name)

    def _encoded(self, flow: Flow) -> bytes:
        return flow_pb2.Flow(**masks.apply(self._mask, fields(flow))).SerializeToString()

    def _templated(self, event: TemplatedFlow) -> bytes:
        """Hot."""
        key = (event.shape, event.is_request)
        known = self._fixed.get(key)
        if known is None:
            model = event.model
            fixed = self._encoded(msgspec.structs.replace(model, **_VARYING))
            known = remember(self._fixed, key, (fixed, _named(model.node_name or self._node_name)), REMEMBERED)
        fixed, named = known
        varying = event.varying()
        if self._in_parts:
            return _wrapped(fixed + self._encoded(varying), named, event.time_ns)
        message = _message(varying, event.time_ns)
        for name in self._unwanted:
            message.ClearField(name)
        return _wrapped(fixed + message.SerializeToString(), named, event.time_ns)


def fields(flow: Flow) -> dict[str, Any]:
    """The arguments of `flow_pb2.Flow`: the JSON mapping, with the values that a constructor takes otherwise."""
    found: dict[str, Any] = msgspec.to_builtins(flow)
    if "time" in found:
        found["time"] = moment(flow.time_ns)
    if "is_reply" in found:
        found["is_reply"] = {"value": flow.is_reply}
    if flow.l7 is not None:
        found["l7"]["latency_ns"] = int(flow.l7.latency_ns or 0)
    for name in POLICIES:
        for policy in found.get(name, ()):
            policy["revision"] = int(policy.get("revision") or 0)
    return found


def _message(varying: Flow, time_ns: int) -> flow_pb2.Flow:
    """The varying fields of an HTTP flow. Much faster than a message's constructor with nested mappings."""
    message = flow_pb2.Flow(uuid=varying.uuid, Summary=varying.summary)
    message.time.seconds, message.time.nanos = divmod(time_ns, timestamp.SECOND)
    if varying.l4 is not None and varying.l4.tcp is not None:
        ports = message.l4.TCP
        ports.source_port, ports.destination_port = varying.l4.tcp.source_port, varying.l4.tcp.destination_port
    if varying.l7 is not None and varying.l7.http is not None:
        l7, http = message.l7, varying.l7.http
        l7.type = _L7_TYPES[varying.l7.type]
        l7.latency_ns = int(varying.l7.latency_ns or 0)
        l7.http.code, l7.http.method, l7.http.url, l7.http.protocol = http.code, http.method, http.url, http.protocol
    return message


def moment(time_ns: int) -> dict[str, int]:
    """A Timestamp."""
    return {"seconds": time_ns // timestamp.SECOND, "nanos": time_ns % timestamp.SECOND}


def _lost(event: Event, node_name: str) -> bytes:
    source = event.source if isinstance(event, Lost) else "UNKNOWN_LOST_EVENT_SOURCE"
    time = moment(event.time_ns)
    lost = {"source": source, "num_events_lost": event.lost, "first": time, "last": time}
    response: Any = {"lost_events": lost, "node_name": node_name, "time": time}
    return observer_pb2.GetFlowsResponse(**response).SerializeToString()


def _named(node_name: str) -> bytes:
    return observer_pb2.GetFlowsResponse(node_name=node_name).SerializeToString()


def _wrapped(flow: bytes, named: bytes, time_ns: int) -> bytes:
    response = observer_pb2.GetFlowsResponse()
    response.time.seconds, response.time.nanos = divmod(time_ns, timestamp.SECOND)
    return b"%c%b%b%b%b" % (_FLOW, _varint(len(flow)), flow, named, response.SerializeToString())


def _varint(number: int) -> bytes:
    """Base 128, lowest digits first, each but the last with the high bit: protobuf's encoding of numbers."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
