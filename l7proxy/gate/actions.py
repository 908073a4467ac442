"""The closed set of things a gate can ask its session to do. The session executes them in order.

Plain slots classes, not frozen ones: they are made per read. (On the constructors see wire/head.)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

from l7proxy.flows.records import Record

if TYPE_CHECKING:
    from l7proxy.gate.pick import Gate


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


class Become:
    """Another gate takes the connection over, from the next call on; actions that follow are its own already."""

    __slots__ = ("gate",)

    def __init__(self, gate: Gate) -> None:
        self.gate = gate


Action: TypeAlias = ToServer | ToClient | Emit | Connect | Pause | Resume | HalfClose | Close | Splice | Become
