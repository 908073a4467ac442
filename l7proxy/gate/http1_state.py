"""The states of an HTTP/1 gate, and which event leads from one to which.

A state says what of the current exchange is still to come: its request, its response, or both. What the table does not
list cannot happen: it raises, which ends the session. Plain numbers, which compiled code inlines.
"""

from __future__ import annotations

from typing import Final

from l7proxy.gate.actions import Phase


class State:
    HEAD: Final = 0  # no exchange: a request's head is read
    SENDING: Final = 1  # the request's body is sent to the server
    AWAITING: Final = 2  # the whole request is sent
    DUPLEX: Final = 3  # the response has begun while the request's body is sent
    RECEIVING: Final = 4  # the whole request is sent, and the response has begun
    FINISHING: Final = 5  # the response is complete, and the request's body is still sent
    DISCARDING: Final = 6  # the request is denied and answered: its body is discarded
    TUNNEL: Final = 7  # the server has switched protocols: bytes pass in both directions
    TO_CLIENT: Final = 8  # a tunnel whose client has finished
    TO_SERVER: Final = 9  # a tunnel whose server has finished
    CLOSED: Final = 10


class Event:
    REQUEST: Final = 0  # an allowed request without a body
    UPLOAD: Final = 1  # an allowed request with a body
    DENIED: Final = 2  # a denied request without a body
    DENIED_UPLOAD: Final = 3
    REQUEST_END: Final = 4
    RESPONSE: Final = 5  # the head of a response, with more to come
    RESPONSE_END: Final = 6
    SWITCH: Final = 7  # 101, or 2xx to CONNECT
    CLIENT_EOF: Final = 8  # in a tunnel
    SERVER_EOF: Final = 9
    CLOSE: Final = 10


NEXT: Final[dict[int, dict[int, int]]] = {
    State.HEAD: {
        Event.REQUEST: State.AWAITING,
        Event.UPLOAD: State.SENDING,
        Event.DENIED: State.HEAD,
        Event.DENIED_UPLOAD: State.DISCARDING,
        Event.CLOSE: State.CLOSED,
    },
    State.SENDING: {
        Event.REQUEST_END: State.AWAITING,
        Event.RESPONSE: State.DUPLEX,
        Event.RESPONSE_END: State.FINISHING,
        Event.CLOSE: State.CLOSED,
    },
    State.AWAITING: {
        Event.RESPONSE: State.RECEIVING,
        Event.RESPONSE_END: State.HEAD,
        Event.SWITCH: State.TUNNEL,
        Event.CLOSE: State.CLOSED,
    },
    State.DUPLEX: {
        Event.REQUEST_END: State.RECEIVING,
        Event.RESPONSE_END: State.FINISHING,
        Event.CLOSE: State.CLOSED,
    },
    State.RECEIVING: {Event.RESPONSE_END: State.HEAD, Event.CLOSE: State.CLOSED},
    State.FINISHING: {Event.REQUEST_END: State.HEAD, Event.CLOSE: State.CLOSED},
    State.DISCARDING: {Event.REQUEST_END: State.HEAD, Event.CLOSE: State.CLOSED},
    State.TUNNEL: {
        Event.CLIENT_EOF: State.TO_CLIENT,
        Event.SERVER_EOF: State.TO_SERVER,
        Event.CLOSE: State.CLOSED,
    },
    State.TO_CLIENT: {Event.CLOSE: State.CLOSED},
    State.TO_SERVER: {Event.CLOSE: State.CLOSED},
    State.CLOSED: {},
}

PHASES: Final[dict[int, Phase]] = {
    State.HEAD: Phase.IDLE,
    State.SENDING: Phase.BODY,
    State.AWAITING: Phase.RESPONSE,
    State.DUPLEX: Phase.BODY,
    State.RECEIVING: Phase.TRANSFER,
    State.FINISHING: Phase.BODY,
    State.DISCARDING: Phase.BODY,
    State.TUNNEL: Phase.TUNNEL,
    State.TO_CLIENT: Phase.TUNNEL,
    State.TO_SERVER: Phase.TUNNEL,
    State.CLOSED: Phase.CLOSED,
}
"""What a connection in this state waits for; see `HttpGate.waiting_for` for what depends on buffered bytes."""

# As rows, for the common path.
_ROWS: Final[tuple[tuple[int, ...], ...]] = tuple(
    tuple(row.get(event, -1) for event in range(Event.CLOSE + 1)) for row in NEXT.values()
)
_PHASES: Final[tuple[Phase, ...]] = tuple(PHASES.values())


def following(state: int, event: int) -> int:
    """The state after `event`. RuntimeError when it cannot happen in this state."""
    after = _ROWS[state][event]
    if after < 0:
        raise RuntimeError(f"the HTTP/1 gate had the event {event} in the state {state}")
    return after


def phase(state: int) -> Phase:
    return _PHASES[state]


def unanswered(state: int) -> bool:
    """The server has to complete the response."""
    return State.SENDING <= state <= State.RECEIVING


def uploading(state: int) -> bool:
    """The client sends the body of an allowed request."""
    return state == State.SENDING or state == State.DUPLEX or state == State.FINISHING
