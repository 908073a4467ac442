"""The actions that a gate can return, and the Gate protocol. The session executes the actions in order.

Slots classes, not frozen: actions are created on every read. (For the constructors see wire/head.)
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


class Phase(IntEnum):
    """What a connection waits for. Each phase has its timeout: see `Session`."""

    IDLE = 0  # no request has begun
    HEAD = 1  # a request's head is incomplete
    BODY = 2  # the client must send a body
    CONNECT = 3  # the server must accept the connection
    RESPONSE = 4  # the server must send a head
    TRANSFER = 5  # a response's body is being sent
    TUNNEL = 6  # raw bytes
    CLOSED = 7


@dataclass(slots=True)
class Connect:
    """Open the upstream connection unless it is open. The session buffers bytes for the server until it is."""


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
    """Send FIN to this side after the bytes written so far; no more will be written."""

    side: Side


@dataclass(init=False, slots=True)
class Emit:
    record: Record

    def __init__(self, record: Record) -> None:
        self.record = record


@dataclass(slots=True)
class Close:
    """End the connection on both sides. `reset`: RST to both; else the bytes written so far, then FIN. `revoked`: the
    server gets a RST in any case, and its unsent bytes are dropped."""

    reset: bool = False
    revoked: bool = False


@dataclass(slots=True)
class Pause:
    """Stop reading from this side: the gate's buffer for it is full."""

    side: Side


@dataclass(slots=True)
class Resume:
    side: Side


@dataclass(slots=True)
class Splice:
    """The next `length` bytes from this side may go to the other without the gate. An offer: the session reports how
    many did (`Gate.spliced`), and passes the others to the gate as usual."""

    source: Side
    length: int


class SwitchGate:
    """Another gate takes over the connection from the next call on; the actions after this one come from it."""

    __slots__ = ("gate",)

    def __init__(self, gate: Gate) -> None:
        self.gate = gate


Action: TypeAlias = ToServer | ToClient | Emit | Connect | Pause | Resume | HalfClose | Close | Splice | SwitchGate


class Gate(Protocol):
    """The state machine of one connection. The session passes events to it and executes the returned actions in order.

    `started` is called first, when the client is connected. After a Close, calls have no effect; the session discards
    what the client still sends, so that no reset destroys our last response before the client reads it (RFC 9112 9.6).
    `client_lost` is for every end that the gate did not ask for: the client's RST, a drain, a policy change.
    `must_read`: the protocol obliges this side to read now (in HTTP/2 always, RFC 9113 5.2.2). If it does not, we need
    not read from it either, so that it cannot make us buffer the responses to what it sends.
    """

    def must_read(self, side: Side) -> bool: ...

    @property
    def waiting_for(self) -> Phase:
        """The phase, whose timeout applies now."""

    @property
    def held(self) -> int:
        """Approximate number of bytes buffered for both sides."""

    def started(self) -> list[Action]: ...

    def connected(self) -> list[Action]: ...

    def from_client(self, data: bytes) -> list[Action]: ...

    def from_server(self, data: bytes) -> list[Action]: ...

    def spliced(self, source: Side, count: int) -> list[Action]:
        """`count` bytes of those offered by Splice have gone from `source` to the other side."""

    def client_eof(self) -> list[Action]: ...

    def server_eof(self) -> list[Action]: ...

    def client_lost(self, reason: str = "the client closed the connection") -> list[Action]:
        """`reason` begins the reason in the records of the exchanges in progress."""

    def upstream_failed(self, reason: str) -> list[Action]: ...

    def identified(self, conn: Conn) -> None:
        """The identities of the connection have changed: later records carry `conn`."""

    def policy_changed(self) -> list[Action]:
        """The policy has changed: evaluate requests in progress or waiting again; end those now refused."""

    def draining(self) -> list[Action]:
        """The worker is stopping: requests in progress may finish. If this returns no action, the session ends the
        connection once `waiting_for` is IDLE."""

    def timed_out(self, phase: Phase) -> list[Action]:
        """`phase` is the `waiting_for` that the timer was set for; no effect if that has changed."""
