"""Flows as OpenTelemetry logs: OTLP over HTTP, in its JSON encoding, which every collector reads.

As https://opentelemetry.io/docs/specs/otlp/ says. Attributes have the names of the semantic conventions where these
have one, else names under `l7proxy.`. A collector that is slow or away costs flows, which are counted, and never
traffic: the sink has a thread of its own, and the ring is its queue. Values of headers are secret: no message has them.
"""

from __future__ import annotations

import gzip
import http.client
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import msgspec

from l7proxy import __version__
from l7proxy.errors import ConfigError
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.flow import NOT_FORWARDED, Endpoint, Flow

BATCH: Final = 512
"""Flows in one request."""
TIMEOUT: Final = 10.0
"""Seconds for one request."""
RETRY_FOR: Final = 30.0
"""Seconds that a batch is tried again for, when the collector is away or says that it is busy."""
PAUSES: Final = (0.5, 5.0)
"""Seconds before the next try: the first, and the longest one."""
BUSY: Final = frozenset((429, 502, 503, 504))
INFO, WARN = 9, 13
"""Severity numbers."""
_encode: Final = msgspec.json.Encoder().encode


class Otlp:
    """`endpoint`: http:// or https://HOST[:PORT][/PATH]; without a path `/v1/logs`. `headers_file`: lines
    `name: value`, read again for each connection. `ca_file`: PEM; empty: those of the system. ConfigError says what is
    wrong."""

    def __init__(
        self,
        endpoint: str,
        *,
        headers_file: str = "",
        ca_file: str = "",
        node: str = "",
        cluster: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lost = 0
        self.problem = ""
        self._url = _checked(endpoint)
        self._headers_file = Path(headers_file) if headers_file else None
        if self._headers_file and self._url.scheme != "https":
            raise ConfigError("flow_otlp_headers_file: its secrets are sent over https:// only")
        self._tls = _tls(ca_file) if self._url.scheme == "https" else None
        if self._headers_file:
            _headers(self._headers_file)
        self._resource = _attributes(
            {
                "service.name": "l7proxy",
                "service.version": __version__,
                "k8s.node.name": node,
                "k8s.cluster.name": cluster,
            }
        )
        self._clock = clock
        self._hurried = threading.Event()
        self._connection: http.client.HTTPConnection | None = None

    def consume(self, events: Sequence[Event]) -> None:
        for start in range(0, len(events), BATCH):
            some = events[start : start + BATCH]
            if self._hurried.is_set() and self.problem:
                self.lost += len(some)  # the agent must not wait for a collector that is away
            elif problem := self._sent(_encode(self._request(some))):
                self.problem = f"OTLP {self._url.hostname}: {problem}"
                self.lost += len(some)
            else:
                self.problem = ""

    def hurry(self) -> None:
        self._hurried.set()

    def close(self) -> None:
        self._disconnect()

    def _request(self, events: Sequence[Event]) -> dict[str, Any]:
        scope = {"scope": {"name": "l7proxy", "version": __version__}, "logRecords": [_record(one) for one in events]}
        return {"resourceLogs": [{"resource": {"attributes": self._resource}, "scopeLogs": [scope]}]}

    def _sent(self, body: bytes) -> str:
        """Why it was not taken; "" if it was."""
        packed = gzip.compress(body, compresslevel=1)
        give_up = self._clock() + RETRY_FOR
        pause, longest = PAUSES
        while True:
            problem, again = self._posted(packed)
            if not problem or not again or self._clock() + pause > give_up or self._hurried.wait(pause):
                return problem
            pause = min(2 * pause, longest)

    def _posted(self, body: bytes) -> tuple[str, bool]:
        """What is wrong, and whether trying again may help."""
        try:
            if self._connection is None:
                self._connect()
            assert self._connection is not None
            self._connection.request("POST", self._url.path.rstrip("/") or "/v1/logs", body, self._headers)
            answer = self._connection.getresponse()
            said = answer.read(4096)
            if not answer.isclosed():
                self._disconnect()  # more than we want to read
        except (OSError, http.client.HTTPException, ConfigError) as error:
            self._disconnect()
            return str(error) or type(error).__name__, True
        if answer.status in BUSY:
            return f"the collector is busy: {answer.status}", True
        if answer.status >= 300:
            return f"the collector answered {answer.status} {answer.reason}", False
        return _rejected(said), False

    def _connect(self) -> None:
        self._headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        if self._headers_file:
            self._headers |= _headers(self._headers_file)
        host, port = self._url.hostname or "", self._url.port
        if self._tls is not None:
            self._connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=self._tls)
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _checked(endpoint: str) -> SplitResult:
    fault = (
        f"flow_otlp_endpoint: must be http:// or https://HOST[:PORT][/PATH], not {_without_secrets(endpoint)!r:.200}"
    )
    try:
        url = urlsplit(endpoint)
        _ = url.port
    except ValueError as error:
        raise ConfigError(fault) from error
    if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query or url.fragment:
        raise ConfigError(fault)
    return url


def _without_secrets(endpoint: str) -> str:
    """A password has no place in it, and may be there all the same."""
    return endpoint.rpartition("@")[2].partition("?")[0]


def _tls(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"flow_otlp_ca_file {ca_file}: not PEM certificates: {error}") from error


def _headers(path: Path) -> dict[str, str]:
    """ConfigError names the line, never what is in it."""
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"flow_otlp_headers_file {path}: cannot be read as ASCII text") from error
    found = {}
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if line.strip():
            if not colon or not name.strip().replace("-", "").isalnum() or not value.strip().isprintable():
                raise ConfigError(f"flow_otlp_headers_file {path}:{number}: must be `name: value`")
            found[name.strip()] = value.strip()
    return found


def _rejected(answer: bytes) -> str:
    """A collector may take a part of the batch only."""
    try:
        partial = msgspec.json.decode(answer or b"{}", type=dict[str, Any]).get("partialSuccess") or {}
        rejected = int(partial.get("rejectedLogRecords") or 0)
    except (msgspec.DecodeError, ValueError, AttributeError, TypeError):
        return ""
    return f"the collector rejected {rejected} flows" if rejected else ""


def _record(event: Event) -> dict[str, Any]:
    flow = event.flow()
    if flow is None:
        source = event.source if isinstance(event, Lost) else ""
        found = {"l7proxy.lost": event.lost, "l7proxy.lost.source": source}
        return _log(event.time_ns, WARN, f"{event.lost} flows were lost", "l7proxy.lost", found)
    severity = WARN if flow.verdict in NOT_FORWARDED else INFO
    record = _log(flow.time_ns, severity, flow.summary, "l7proxy.flow", dict(_of_flow(flow)))
    trace = flow.trace_context
    if trace and trace.parent and trace.parent.trace_id:
        record["traceId"] = trace.parent.trace_id
    return record


def _log(time_ns: int, severity: int, body: str, name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "timeUnixNano": str(time_ns),
        "severityNumber": severity,
        "severityText": "WARN" if severity == WARN else "INFO",
        "eventName": name,
        "body": {"stringValue": body},
        "attributes": _attributes(attributes),
    }


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that are set."""
    return [{"key": name, "value": _value(value)} for name, value in values.items() if value not in ("", 0, None, ())]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, tuple):
        return {"arrayValue": {"values": [{"stringValue": one} for one in value]}}
    return {"stringValue": value}


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
