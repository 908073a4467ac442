"""What a worker (or the NFLOG reader) records: addresses, numbers and the rule, no names.

The agent makes Hubble flows of them. msgspec arrays: these cross the link in batches, thousands per second.
gc=False: none of them is part of a reference cycle, and there are many.
"""

from __future__ import annotations

import msgspec

from l7proxy.model.policy_verdict import Conn, PolicyVerdict


class HttpRequest(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="q"):
    """One evaluated HTTP request. `time_ns` is wall clock time. `headers` only if the configuration asks for them.

    `remarks` say in words which header rules an allowed request did not satisfy. `trace_id`: 32 hexadecimal digits, ""
    if the request is not traced.
    """

    time_ns: int
    conn: Conn
    policy_verdict: PolicyVerdict
    method: str
    url: str
    protocol: str
    headers: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    trace_id: str = ""


class HttpResponse(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="s"):
    """The final response of one request, from the proxy (403, 502…) or the server. Each request has exactly one.

    `trace_id`: of the request.
    """

    time_ns: int
    conn: Conn
    policy_verdict: PolicyVerdict
    method: str
    url: str
    protocol: str
    status: int
    latency_ns: int
    headers: tuple[tuple[str, str], ...] = ()
    trace_id: str = ""


class Connection(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="c"):
    """An L3/L4 verdict: a new connection allowed or redirected, or a packet refused. `flags` are TCP's, bit 0 FIN.

    `interface`: index of the network interface that it came in by, 0 if not known.
    """

    time_ns: int
    conn: Conn
    policy_verdict: PolicyVerdict
    flags: int = 2
    icmp_type: int = 0
    icmp_code: int = 0
    interface: int = 0


class Malformed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="m"):
    """Bytes on an L7 port that are not a valid request: refused, with the reason. `status` is that of the response."""

    time_ns: int
    conn: Conn
    policy_verdict: PolicyVerdict
    status: int
    protocol: str = "HTTP/1.1"


Record = HttpRequest | HttpResponse | Connection | Malformed
