"""Builds the records of one client's HTTP connection: decides what they show of a request and its response.

Query strings and header values may contain secrets: they are left out unless the options include them. The value of a
header that a policy compares with a Secret is never shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

import msgspec

from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed
from l7proxy.gate.options import HttpOptions
from l7proxy.model.http import Request, Rewrite, edited
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.secret import REDACTED
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.wire.head import Header

HTTP1: Final = ("HTTP/1.0", "HTTP/1.1")
HTTP2: Final = "HTTP/2"
LONGEST: Final = 4096
"""Most characters of a URL or header value in a record. Tens of thousands of records wait while the agent is away or
slow: without this limit clients could fill a worker's memory with heads of 64 KiB."""


class Answered(Protocol):
    @property
    def headers(self) -> list[Header]: ...


class AccessLog:
    __slots__ = ("_direction", "_now_ns", "_options", "conn")

    def __init__(self, conn: Conn, now_ns: Callable[[], int], options: HttpOptions, direction: Direction) -> None:
        """`conn` may be replaced, for later records. `direction` is that of Malformed records."""
        self.conn = conn
        self._now_ns = now_ns
        self._options = options
        self._direction = direction

    def request(self, asked: Request, policy_verdict: PolicyVerdict, protocol: str, trace_id: str = "") -> HttpRequest:
        """Headers are recorded as forwarded (Cilium semantics)."""
        rewrite = asked.rewrite
        record = HttpRequest(
            self._now_ns(),
            self.conn,
            policy_verdict,
            asked.method.decode(),
            self._url(asked),
            protocol,
            self._shown(asked.headers, rewrite) if self._options.flow_headers else (),
            (),
            trace_id,
        )
        if rewrite is None:
            return record
        remarks = (*self._remarks("missing", rewrite.missing), *self._remarks("rejected", rewrite.rejected))
        return msgspec.structs.replace(record, remarks=remarks)

    def response(self, asked: HttpRequest, status: int, reason: str = "", head: Answered | None = None) -> HttpResponse:
        """`reason`: why the response is ours or incomplete; empty if it is the server's and complete."""
        policy_verdict = (
            msgspec.structs.replace(asked.policy_verdict, reason=reason) if reason else asked.policy_verdict
        )
        now = self._now_ns()
        return HttpResponse(
            now,
            asked.conn,
            policy_verdict,
            asked.method,
            asked.url,
            asked.protocol,
            status,
            max(0, now - asked.time_ns),  # the wall clock may have been set back
            self._shown(head.headers) if head is not None and self._options.flow_headers else (),
            asked.trace_id,
        )

    def malformed(self, status: int, reason: str, protocol: str = HTTP1[1]) -> Malformed:
        policy_verdict = PolicyVerdict(Verdict.DROPPED, self._direction, reason=reason)
        return Malformed(self._now_ns(), self.conn, policy_verdict, status, protocol)

    def connection(self, policy_verdict: PolicyVerdict) -> Connection:
        return Connection(self._now_ns(), self.conn, policy_verdict)

    def _url(self, asked: Request) -> str:
        path = asked.path if self._options.flow_query else asked.path.partition(b"?")[0]
        return _cut((b"http://" + asked.host + (b"" if path == b"*" else path)).decode())

    def _shown(self, headers: list[Header], rewrite: Rewrite | None = None) -> tuple[tuple[str, str], ...]:
        if rewrite is not None:
            headers = edited(headers, [edit.shown for edit in rewrite.edits])
        wanted = self._options.flow_headers
        return tuple((name.decode(), self._value_shown(name, value)) for name, value in headers if name in wanted)

    def _remarks(self, what: str, headers: Iterable[Header]) -> Iterator[str]:
        """All headers by name; values only of those that may be shown."""
        for name, value in headers:
            shown = f": {self._value_shown(name, value)}" if name in self._options.flow_headers else ""
            yield f"header {what}: {name.decode()}{shown}"

    def _value_shown(self, name: bytes, value: bytes) -> str:
        return REDACTED if name in self._options.secret_headers else _cut(value.decode("latin-1"))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
