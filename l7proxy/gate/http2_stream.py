"""One HTTP/2 stream in the gate: a request, its response, and which sides have finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from l7proxy.flows.records import HttpRequest
from l7proxy.gate.http2_relay import StreamHalf
from l7proxy.wire.head import Header
from l7proxy.wire.http2_fields import FieldBlock
from l7proxy.wire.http2_frames import Code
from l7proxy.wire.http2_head import RequestHead, ResponseHead


class State(IntEnum):
    NEW = 0  # its request is being evaluated
    PENDING = 1  # allowed; the server is not connected, or accepts no more streams for now
    AT_SERVER = 2  # forwarded
    DETACHED = 3  # the server has nothing more to do with it; the rest of its response is sent to the client
    ANSWERED = 4  # by the proxy; the rest of the request is discarded


class Event(IntEnum):
    ALLOW = 0
    FORWARD = 1
    DETACH = 2
    ANSWER = 3


NEW: Final = State.NEW
PENDING: Final = State.PENDING
AT_SERVER: Final = State.AT_SERVER
DETACHED: Final = State.DETACHED
ANSWERED: Final = State.ANSWERED

NEXT: Final[dict[State, dict[Event, State]]] = {
    NEW: {Event.ALLOW: PENDING, Event.ANSWER: ANSWERED},
    PENDING: {Event.FORWARD: AT_SERVER, Event.DETACH: DETACHED, Event.ANSWER: ANSWERED},
    AT_SERVER: {Event.DETACH: DETACHED, Event.ANSWER: ANSWERED},
    DETACHED: {Event.DETACH: DETACHED, Event.ANSWER: ANSWERED},
    ANSWERED: {},
}
"""A stream may be removed in every state. What is not listed cannot happen: KeyError ends the session."""


@dataclass(slots=True)
class Stream:
    """It has the same ID on both connections. `head` is None when the request was invalid; `record` also after its
    HttpResponse has been emitted.

    `waiting`: in PENDING, the head to forward. `code`: in DETACHED, the reset for a client that still sends. `judged`:
    the request's fields that were evaluated, and those that its policy added.
    """

    id: int
    up: StreamHalf
    down: StreamHalf
    head: RequestHead | None = None
    judged: Sequence[Header] = ()
    record: HttpRequest | None = None
    grpc: bool = False
    waiting: FieldBlock | None = None
    state: State = NEW
    response: ResponseHead | None = None
    interim: int = 0
    code: int = Code.NO_ERROR

    def move(self, event: Event) -> None:
        self.state = NEXT[self.state][event]

    def detach(self) -> None:
        self.move(Event.DETACH)
        self.up.open = False

    @property
    def at_server(self) -> bool:
        """The server counts it as an open stream."""
        return self.state is AT_SERVER and not (self.down.ended and self.up.sent)

    @property
    def head_only(self) -> bool:
        """Its response has no body."""
        return self.head is not None and self.head.method == b"HEAD"
