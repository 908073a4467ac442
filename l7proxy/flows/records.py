"""What a worker (or the NFLOG reader) records: addresses, numbers and the rule, no names.

The agent makes Hubble flows of them. msgspec arrays: these cross the link in batches, thousands per second.
gc=False: none of them is part of a reference cycle, and there are many.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from l7proxy.model.policy_verdict import Conn, Octet, PolicyVerdict, UInt32

Nanoseconds: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""As a time since 1970: up to the year 2262."""
HttpStatus: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=999)]
TcpFlags: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=511)]
TraceId: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{32})?\Z")]


class HttpRequest(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="q"):
    """One evaluated HTTP request. `time_ns` is wall clock time. `headers` only if the configuration asks for them.

    `remarks` say in words which header rules an allowed request did not satisfy. `trace_id`: 32 hexadecimal digits, ""
    if the request is not traced.
    """

    time_ns: Nanoseconds
    conn: Conn
    policy_verdict: PolicyVerdict
    method: str
    url: str
    protocol: str
    headers: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    trace_id: TraceId = ""


class HttpResponse(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="s"):
    """The final response of one request, from the proxy (403, 502…) or the server. Each request has exactly one.

    `trace_id`: of the request.
    """

    time_ns: Nanoseconds
    conn: Conn
    policy_verdict: PolicyVerdict
    method: str
    url: str
    protocol: str
    status: HttpStatus
    latency_ns: Nanoseconds
    headers: tuple[tuple[str, str], ...] = ()
    trace_id: TraceId = ""


class Connection(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="c"):
    """An L3/L4 verdict: a new connection allowed or redirected, or a packet refused. `flags` are TCP's, bit 0 FIN.

    `interface`: index of the network interface that it came in by, 0 if not known.
    """

    time_ns: Nanoseconds
    conn: Conn
    policy_verdict: PolicyVerdict
    flags: TcpFlags = 2
    icmp_type: Octet = 0
    icmp_code: Octet = 0
    interface: UInt32 = 0


class Malformed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="m"):
    """Bytes on an L7 port that are not a valid request: refused, with the reason. `status` is that of the response."""

    time_ns: Nanoseconds
    conn: Conn
    policy_verdict: PolicyVerdict
    status: HttpStatus
    protocol: str = "HTTP/1.1"


Record = HttpRequest | HttpResponse | Connection | Malformed
