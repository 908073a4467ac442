"""The states of an HTTP/1 gate, and which event leads from one to which.

A state says what of the current exchange is still to come: its request, its response, or both. What the table does not
list cannot happen: it raises KeyError, which ends the session.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from l7proxy.gate.actions import Phase


class State(IntEnum):
    HEAD = 0  # no exchange: a request's head is read
    SENDING = 1  # the request's body is sent to the server
    AWAITING = 2  # the whole request is sent
    DUPLEX = 3  # the response has begun while the request's body is sent
    RECEIVING = 4  # the whole request is sent, and the response has begun
    FINISHING = 5  # the response is complete, and the request's body is still sent
    DISCARDING = 6  # the request is denied and answered: its body is discarded
    TUNNEL = 7  # the server has switched protocols: bytes pass in both directions
    TO_CLIENT = 8  # a tunnel whose client has finished
    TO_SERVER = 9  # a tunnel whose server has finished
    CLOSED = 10


class Event(IntEnum):
    MORE = 0  # nothing that changes the state
    REQUEST = 1  # an allowed request without a body
    UPLOAD = 2  # an allowed request with a body
    DENIED = 3  # a denied request without a body
    DENIED_UPLOAD = 4
    REQUEST_END = 5
    RESPONSE = 6  # the head of a response, with more to come
    RESPONSE_END = 7
    SWITCH = 8  # 101, or 2xx to CONNECT
    CLIENT_EOF = 9  # in a tunnel
    SERVER_EOF = 10
    CLOSE = 11


# Final, so that compiled code needs no look-ups.
HEAD: Final = State.HEAD
SENDING: Final = State.SENDING
AWAITING: Final = State.AWAITING
DUPLEX: Final = State.DUPLEX
RECEIVING: Final = State.RECEIVING
FINISHING: Final = State.FINISHING
DISCARDING: Final = State.DISCARDING
TUNNEL: Final = State.TUNNEL
TO_CLIENT: Final = State.TO_CLIENT
TO_SERVER: Final = State.TO_SERVER
CLOSED: Final = State.CLOSED
MORE: Final = Event.MORE
REQUEST: Final = Event.REQUEST
UPLOAD: Final = Event.UPLOAD
DENIED: Final = Event.DENIED
DENIED_UPLOAD: Final = Event.DENIED_UPLOAD
REQUEST_END: Final = Event.REQUEST_END
RESPONSE: Final = Event.RESPONSE
RESPONSE_END: Final = Event.RESPONSE_END
SWITCH: Final = Event.SWITCH
CLIENT_EOF: Final = Event.CLIENT_EOF
SERVER_EOF: Final = Event.SERVER_EOF
CLOSE: Final = Event.CLOSE

IDLE: Final = Phase.IDLE
IN_HEAD: Final = Phase.HEAD
CONNECT: Final = Phase.CONNECT

NEXT: Final[dict[State, dict[Event, State]]] = {
    HEAD: {REQUEST: AWAITING, UPLOAD: SENDING, DENIED: HEAD, DENIED_UPLOAD: DISCARDING, CLOSE: CLOSED},
    SENDING: {REQUEST_END: AWAITING, RESPONSE: DUPLEX, RESPONSE_END: FINISHING, CLOSE: CLOSED},
    AWAITING: {RESPONSE: RECEIVING, RESPONSE_END: HEAD, SWITCH: TUNNEL, CLOSE: CLOSED},
    DUPLEX: {REQUEST_END: RECEIVING, RESPONSE_END: FINISHING, CLOSE: CLOSED},
    RECEIVING: {RESPONSE_END: HEAD, CLOSE: CLOSED},
    FINISHING: {REQUEST_END: HEAD, CLOSE: CLOSED},
    DISCARDING: {REQUEST_END: HEAD, CLOSE: CLOSED},
    TUNNEL: {CLIENT_EOF: TO_CLIENT, SERVER_EOF: TO_SERVER, CLOSE: CLOSED},
    TO_CLIENT: {CLOSE: CLOSED},
    TO_SERVER: {CLOSE: CLOSED},
    CLOSED: {},
}

UNANSWERED: Final = (AWAITING, SENDING, RECEIVING, DUPLEX)
"""The server has to complete the response."""
UPLOADS: Final = (SENDING, DUPLEX, FINISHING)
"""The client sends the body of an allowed request."""
TUNNELS: Final = (TUNNEL, TO_CLIENT, TO_SERVER)

PHASES: Final[dict[State, Phase]] = {
    HEAD: IDLE,
    SENDING: Phase.BODY,
    AWAITING: Phase.RESPONSE,
    DUPLEX: Phase.BODY,
    RECEIVING: Phase.TRANSFER,
    FINISHING: Phase.BODY,
    DISCARDING: Phase.BODY,
    TUNNEL: Phase.TUNNEL,
    TO_CLIENT: Phase.TUNNEL,
    TO_SERVER: Phase.TUNNEL,
    CLOSED: Phase.CLOSED,
}
"""What a connection in this state waits for; see `HttpGate.waiting_for` for what depends on buffered bytes."""
