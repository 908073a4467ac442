"""What a worker (or the NFLOG reader) writes of each judged thing: addresses, numbers and the rule, no names.

The agent makes Hubble flows of them. msgspec arrays: these cross the link in batches, thousands a second.
gc=False: none of them is part of a cycle, and there are many.
"""

from __future__ import annotations

import msgspec

from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Direction, DropReason, Verdict


class Conn(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A client's connection as the policy sees it: the real pod addresses, after Service DNAT. Ports are numbers."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    source_identity: int
    destination_identity: int
    protocol: int = 6


class Judgement(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The answer to one question, both directions together.

    `direction` is the deciding one: that which refused, else INGRESS if an ingress policy was asked, else EGRESS.
    `ingress` and `egress` name the rules that allowed (or, on the deciding direction, refused); None where no policy
    asks. `reason` is for humans and set on every denial. `match_type` is Hubble's policy_match_type of the rule that
    decided at L3/L4: 1 L3-Only, 2 L3-L4, 3 L4-Only, 4 all, 5 L3-Proto, 6 Proto-Only; 0 none, or not said. `log` are
    the words that the policies of the rules which decided want in the flow (Cilium's `log.value`).
    """

    verdict: Verdict
    direction: Direction
    ingress: RuleRef | None = None
    egress: RuleRef | None = None
    drop_reason: DropReason = DropReason.UNKNOWN
    reason: str = ""
    match_type: int = 0
    log: tuple[str, ...] = ()


class HttpRequest(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="q"):
    """One judged HTTP request. `time_ns` is wall clock. Headers only when configuration asks for them.

    `remarks` are what header rules found wanting in a request that they let pass, in words.
    """

    time_ns: int
    conn: Conn
    judgement: Judgement
    method: str
    url: str
    protocol: str
    headers: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()


class HttpResponse(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="s"):
    """The final response of one request, ours (403, 502…) or the server's. Allowed or not, each request has one."""

    time_ns: int
    conn: Conn
    judgement: Judgement
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
    judgement: Judgement
    flags: int = 2
    icmp_type: int = 0
    icmp_code: int = 0


class Malformed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="m"):
    """Bytes on an L7 port that are no request we could judge: refused, with what was wrong. `status` was answered."""

    time_ns: int
    conn: Conn
    judgement: Judgement
    status: int
    protocol: str = "HTTP/1.1"


Record = HttpRequest | HttpResponse | Connection | Malformed
