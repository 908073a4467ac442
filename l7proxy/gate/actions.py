"""The closed set of things a gate can ask its session to do. The session executes them in order.

Plain slots classes, not frozen ones: they are made per read. (On the constructors see wire/head.)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeAlias

from l7proxy.flows.records import Record
from l7proxy.model.policy_verdict import Conn


class Side(IntEnum):
    CLIENT = 0
    SERVER = 1


@dataclass(slots=True)
class Connect:
    """Open the upstream connection, if there is none yet. Bytes for the server may follow: the session holds them."""


@dataclass(init=False, slots=True)
class ToServer:
    data: bytes

    def __init__(self, data: bytes) -> None:
        self.data = data


@dataclass(init=False, slots=True)
class ToClient:
    data: bytes

    def __init__(self, data: bytes) -> None:
        self.data = data


@dataclass(slots=True)
class HalfClose:
    """Nothing more will be written to this side: send FIN after what was written."""

    side: Side


@dataclass(init=False, slots=True)
class Emit:
    record: Record

    def __init__(self, record: Record) -> None:
        self.record = record


@dataclass(slots=True)
class Close:
    """The connection ends on both sides. `reset`: RST to both; else what was written goes out first, then FIN. With
    `revoked` the server gets a RST all the same, and nothing of what is still to be sent to it."""

    reset: bool = False
    revoked: bool = False


@dataclass(slots=True)
class Pause:
    """Stop reading from this side: the gate holds as much of it as it may."""

    side: Side


@dataclass(slots=True)
class Resume:
    side: Side


@dataclass(slots=True)
class Splice:
    """The next `length` bytes from this side may go to the other unseen. An offer: the session tells the gate how many
    went that way (`Gate.spliced`), and the bytes that did not come as ever."""

    source: Side
    length: int


class SwitchGate:
    """Another gate takes the connection over, from the next call on; actions that follow are its own already."""

    __slots__ = ("gate",)

    def __init__(self, gate: Gate) -> None:
        self.gate = gate


Action: TypeAlias = ToServer | ToClient | Emit | Connect | Pause | Resume | HalfClose | Close | Splice | SwitchGate


class Gate(Protocol):
    """One connection's judge. The session calls it with what happened and executes the actions in order.

    `started` comes first, when the client's connection is there. After a Close no call has an effect; the session then
    reads away what the client still sends, lest a reset destroy our last answer before it is read (RFC 9112 9.6).
    `client_lost` is for every end that is not the gate's wish: the client's RST, a drain, a policy that changed.
    `must_read`: this side owes it to read now (in HTTP/2 always, RFC 9113 5.2.2), so one that does not need not be read
    either, and cannot make us hold the answers to what it sends.
    """

    def must_read(self, side: Side) -> bool: ...

    @property
    def waiting_for(self) -> str:
        """Which timeout applies now, one of:

        idle (no request has begun), head (a request's head is incomplete), body (the client owes a body), connect,
        response (the server owes a head), transfer (a response's body is under way), tunnel (raw bytes), closed.
        """

    @property
    def held(self) -> int:
        """Bytes that are kept for either side, roughly."""

    def started(self) -> list[Action]: ...

    def connected(self) -> list[Action]: ...

    def from_client(self, data: bytes) -> list[Action]: ...

    def from_server(self, data: bytes) -> list[Action]: ...

    def spliced(self, source: Side, count: int) -> list[Action]:
        """So many bytes of what was offered by Splice have gone from `source` to the other side."""

    def client_eof(self) -> list[Action]: ...

    def server_eof(self) -> list[Action]: ...

    def client_lost(self, reason: str = "the client closed the connection") -> list[Action]:
        """`reason` begins the sentence that what is under way is recorded with."""

    def upstream_failed(self, reason: str) -> list[Action]: ...

    def identified(self, conn: Conn) -> None:
        """The identities at the ends are those of `conn` from now on: records to come carry it."""

    def policy_changed(self) -> list[Action]:
        """Another policy is in force: what is under way or waits is judged again, and ends if it is refused now."""

    def draining(self) -> list[Action]:
        """The worker stops: what is under way may end. No action: the session ends it when `waiting_for` is idle."""

    def timed_out(self, which: str) -> list[Action]:
        """`which` is the `waiting_for` that the timer was set for; when that has changed, nothing happens."""
