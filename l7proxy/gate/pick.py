"""What every gate can be told, and which gate a connection gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from l7proxy.flows.records import Conn, Judgement
from l7proxy.gate.actions import Action
from l7proxy.gate.http1 import HttpGate
from l7proxy.gate.options import HttpOptions
from l7proxy.gate.tcp import TcpGate
from l7proxy.model.http import Request
from l7proxy.model.verdict import Direction


class Gate(Protocol):
    """One connection's judge. The session calls it with what happened and executes the actions in order.

    `started` comes first, when the client's connection is there. After a Close no call has an effect; the session then
    reads away what the client still sends, lest a reset destroy our last answer before it is read (RFC 9112 9.6).
    `client_lost` is for every end that is not the gate's wish: the client's RST, a drain, a policy that changed.
    """

    @property
    def waiting_for(self) -> str:
        """Which timeout applies now, one of:

        idle (no request has begun), head (a request's head is incomplete), body (the client owes a body), connect,
        response (the server owes a head), transfer (a response's body is under way), tunnel (raw bytes), closed.
        """

    def started(self) -> list[Action]: ...

    def connected(self) -> list[Action]: ...

    def from_client(self, data: bytes) -> list[Action]: ...

    def from_server(self, data: bytes) -> list[Action]: ...

    def client_eof(self) -> list[Action]: ...

    def server_eof(self) -> list[Action]: ...

    def client_lost(self, reason: str = "the client left") -> list[Action]:
        """`reason` begins the sentence that what is under way is recorded with."""

    def upstream_failed(self, reason: str) -> list[Action]: ...

    def identified(self, conn: Conn) -> None:
        """The identities at the ends are those of `conn` from now on: records to come carry it."""

    def policy_changed(self) -> list[Action]:
        """Another policy is in force: what is no longer judged request by request is judged again."""

    def timed_out(self, which: str) -> list[Action]:
        """`which` is the `waiting_for` that the timer was set for; when that has changed, nothing happens."""


def pick(
    judge: Callable[[Request], Judgement],
    conn: Conn,
    now_ns: Callable[[], int],
    *,
    by_request: bool,
    options: HttpOptions,
    direction: Direction = Direction.INGRESS,
) -> Gate:
    """`by_request`: the connection's policy has HTTP rules."""
    return HttpGate(judge, conn, now_ns, options, direction=direction) if by_request else TcpGate()
