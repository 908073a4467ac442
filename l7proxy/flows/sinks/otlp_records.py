"""Flows as log records of OpenTelemetry. Attributes have the names of the semantic conventions where these have one,
else names under `l7proxy.`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from l7proxy import __version__
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.flow import NOT_FORWARDED, Endpoint, Flow


class LogRecords:
    """Makes the records of one node."""

    def __init__(self, *, node: str, cluster: str) -> None:
        named = {
            "service.name": "l7proxy",
            "service.version": __version__,
            "k8s.node.name": node,
            "k8s.cluster.name": cluster,
        }
        self._resource = Resource(_filled(named))
        self._scope = InstrumentationScope("l7proxy", __version__)

    def of(self, event: Event) -> ReadableLogRecord:
        record = _record(event)
        return ReadableLogRecord(log_record=record, resource=self._resource, instrumentation_scope=self._scope)


def _record(event: Event) -> LogRecord:
    flow = event.flow()
    return _lost_events(event) if flow is None else _flow(flow)


def _lost_events(event: Event) -> LogRecord:
    source = event.source if isinstance(event, Lost) else ""
    found = {"l7proxy.lost": event.lost, "l7proxy.lost.source": source}
    return _log(event.time_ns, SeverityNumber.WARN, f"{event.lost} flows were lost", "l7proxy.lost", found)


def _flow(flow: Flow) -> LogRecord:
    severity = SeverityNumber.WARN if flow.verdict in NOT_FORWARDED else SeverityNumber.INFO
    record = _log(flow.time_ns, severity, flow.summary, "l7proxy.flow", dict(_of_flow(flow)))
    trace = flow.trace_context
    if trace and trace.parent and trace.parent.trace_id:
        record.trace_id = _trace_id(trace.parent.trace_id)
    return record


def _trace_id(text: str) -> int:
    """0 is "no trace id": the text is not a valid one (W3C Trace Context §3.2.2.3)."""
    try:
        found = int(text, 16)
    except ValueError:
        return 0
    return found if 0 < found < 1 << 128 else 0


def _log(time_ns: int, severity: SeverityNumber, body: str, name: str, attributes: Mapping[str, Any]) -> LogRecord:
    return LogRecord(
        timestamp=time_ns,
        observed_timestamp=time_ns,
        severity_number=severity,
        severity_text=severity.name,
        event_name=name,
        body=body,
        attributes=_filled(attributes),
    )


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are set."""
    return {name: value for name, value in values.items() if value not in ("", 0, None, ())}


def _of_flow(flow: Flow) -> Iterator[tuple[str, Any]]:
    if flow.ip:
        yield "source.address", flow.ip.source
        yield "destination.address", flow.ip.destination
        yield "network.type", flow.ip.version.lower()
    if flow.l4 and (ports := flow.l4.ports):
        yield "source.port", ports.source_port
        yield "destination.port", ports.destination_port
        yield "network.transport", "tcp" if flow.l4.tcp else "udp" if flow.l4.udp else "sctp"
    if flow.l7 and (asked := flow.l7.http):
        yield "http.request.method", asked.method
        yield "url.full", asked.url
        yield "http.response.status_code", asked.code
        yield "network.protocol.name", "http" if asked.protocol else ""
        yield "network.protocol.version", asked.protocol.partition("/")[2]
        yield "l7proxy.latency_ns", int(flow.l7.latency_ns or 0)
        of_response = flow.l7.type == "RESPONSE"
        for one in asked.headers:
            yield f"http.{'response' if of_response else 'request'}.header.{one.key.lower()}", (one.value,)
    yield "l7proxy.verdict", flow.verdict
    yield "l7proxy.drop_reason", flow.drop_reason_desc
    yield "l7proxy.direction", flow.traffic_direction.lower()
    yield "l7proxy.reason", flow.policy_log
    yield "l7proxy.uuid", flow.uuid
    for side, end in (("source", flow.source), ("destination", flow.destination)):
        if end:
            yield from _of_end(side, end)
    named = (*flow.ingress_denied_by, *flow.egress_denied_by, *flow.ingress_allowed_by, *flow.egress_allowed_by)
    yield "l7proxy.policies", tuple(f"{one.namespace}/{one.name}" if one.namespace else one.name for one in named)


def _of_end(side: str, end: Endpoint) -> Iterator[tuple[str, Any]]:
    """The conventions have names for the pod that a log is from, but none for both ends of a connection."""
    yield f"l7proxy.{side}.namespace", end.namespace
    yield f"l7proxy.{side}.pod", end.pod_name
    yield f"l7proxy.{side}.identity", end.identity
    yield f"l7proxy.{side}.workload", end.workloads[0].name if end.workloads else ""
