"""What a worker (or the NFLOG reader) writes of each judged thing: addresses, numbers and the rule, no names.

The agent makes Hubble flows of them. msgspec arrays: these cross the link in batches, thousands a second.
gc=False: none of them is part of a cycle, and there are many.
"""

from __future__ import annotations

import msgspec

from l7proxy.model.policy_verdict import Conn, PolicyVerdict


class HttpRequest(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="q"):
    """One judged HTTP request. `time_ns` is wall clock. Headers only when configuration asks for them.

    `remarks` are what header rules found wanting in a request that they let pass, in words.
    """

    time_ns: int
    conn: Conn
    judgement: PolicyVerdict
    method: str
    url: str
    protocol: str
    headers: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()


class HttpResponse(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="s"):
    """The final response of one request, ours (403, 502…) or the server's. Allowed or not, each request has one."""

    time_ns: int
    conn: Conn
    judgement: PolicyVerdict
    method: str
    url: str
    protocol: str
    status: int
    latency_ns: int
    headers: tuple[tuple[str, str], ...] = ()


class Connection(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="c"):
    """An L3/L4 verdict: a new connection allowed or steered, or a packet refused. `flags` are TCP's, bit 0 FIN."""

    time_ns: int
    conn: Conn
    judgement: PolicyVerdict
    flags: int = 2
    icmp_type: int = 0
    icmp_code: int = 0


class Malformed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="m"):
    """Bytes on an L7 port that are no request we could judge: refused, with what was wrong. `status` was answered."""

    time_ns: int
    conn: Conn
    judgement: PolicyVerdict
    status: int
    protocol: str = "HTTP/1.1"


Record = HttpRequest | HttpResponse | Connection | Malformed
