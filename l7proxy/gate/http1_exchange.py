"""One HTTP/1 request and its response: reads the server's bytes and sends the client what belongs to the response.

Laws: a response is sent byte for byte as it came, but for `Connection: close`, instead of `keep-alive`, in the last one
of a proxy that stops (RFC 9112 9.6: the field is each hop's own); bytes after it go to `rest` and are never sent. A
protocol switch (101, or 2xx to CONNECT) is sent only if the client requested it, and after the whole request. An
invalid response is a PeerError, raised before any byte of the invalid head is sent.
"""

from __future__ import annotations

import re
from typing import Final

from l7proxy.errors import PeerError
from l7proxy.flows.records import HttpRequest
from l7proxy.gate import options as bounds
from l7proxy.gate.actions import Action, Side, ToClient
from l7proxy.gate.bulk import offer
from l7proxy.gate.http1_state import Event
from l7proxy.model.http import Request
from l7proxy.wire import http1_fast, http1_strict
from l7proxy.wire.body import Body, body
from l7proxy.wire.head import UNTIL_CLOSE, RequestHead, ResponseHead
from l7proxy.wire.lines import HeadLines

END: Final = b"\r\n"
EMPTY_LINE: Final = b"\r\n\r\n"
CLOSE: Final = b"Connection: close\r\n"
KEEP_ALIVE: Final = re.compile(rb"\r\n(?i:connection):[ \t]*+(?i:keep-alive)[ \t]*+(?=\r\n)")
MORE: Final = -1
"""No event: the state remains."""


class Exchange:
    """`request_body` is None once the whole request is read; `response` is the final head, once received."""

    __slots__ = (
        "_body",
        "_held",
        "_interim",
        "_lines",
        "continued",
        "drained",
        "head",
        "is_last",
        "record",
        "request",
        "request_body",
        "response",
        "rest",
        "told_last",
    )

    def __init__(
        self,
        head: RequestHead,
        request: Request,
        record: HttpRequest,
        request_body: Body | None,
    ) -> None:
        self.head = head
        self.request = request
        self.record = record
        self.request_body = request_body
        self.drained = 0
        self.is_last = False
        self.told_last = False  # the client has been told that no further response follows
        self.continued = False
        self.response: ResponseHead | None = None
        self.rest = b""  # what the server sent after its response (or after the switch)
        self._interim = 0
        self._body: Body | None = None
        self._held: bytearray | None = None  # an unfinished response head
        self._lines: HeadLines | None = None

    @property
    def held(self) -> int:
        """Bytes of an unfinished response head."""
        return len(self._held) if self._held is not None else 0

    @property
    def unheard(self) -> bool:
        """The server has not sent a byte for this request."""
        return self.response is None and not self._interim and not self._held

    @property
    def ends_with_connection(self) -> bool:
        return self.response is not None and self.response.framing == UNTIL_CLOSE

    @property
    def awaits_continue(self) -> bool:
        """The client may be waiting for 100 Continue before it sends the body."""
        return self.head.expect_continue and not self.continued

    def hear(self, data: bytes, actions: list[Action]) -> int:
        """Process the server's next bytes. Returns the event that they cause: RESPONSE, RESPONSE_END, SWITCH or MORE.
        PeerError when they are invalid."""
        if self.response is None and not self._held:
            fast = http1_fast.response(data, self.head.method)
            if isinstance(fast, ResponseHead):
                return self._begin(fast, data, actions)
        while data:
            if self.response is not None:
                return self._take_body(data, actions)
            head = self._read_head(data)
            if head is None:
                break
            assert self._held is not None
            data = bytes(self._held)
            self._held.clear()
            switched = self._switches(head)
            if head.status >= 200 and not switched:
                return self._begin(head, data, actions)
            data = data[len(head.raw) :]
            if not switched:
                self._count_interim(head)
            to_client(actions, head.raw)
            if switched:
                self.response, self.rest = head, data
                return Event.SWITCH
        return MORE

    def _read_head(self, data: bytes) -> ResponseHead | None:
        """Add `data` to `_held` and parse it strictly. None while the head is incomplete."""
        if self._held is None:
            self._held = bytearray()
        held = self._held
        held += data
        lines = self._lines = self._lines or http1_strict.response_lines()
        size = lines.feed(held)
        if not size:
            return None
        self._lines = None
        return http1_strict.response_head(lines, bytes(held[:size]), self.head.method)

    def _begin(self, head: ResponseHead, data: bytes, actions: list[Action]) -> int:
        """`data` begins with `head`. In the common case it is exactly one whole response."""
        self.response = head
        size = len(head.raw)
        raw = head.raw
        if self.is_last and head.keep_alive and raw.endswith(EMPTY_LINE):
            self.told_last = True
            # Some clients read only the first of several fields.
            raw = KEEP_ALIVE.sub(b"", raw)[: -len(END)] + CLOSE + END
        if size + head.framing == len(data):
            actions.append(ToClient(raw + data[size:] if self.told_last else data))
            return Event.RESPONSE_END
        self._body = body(head.framing)
        actions.append(ToClient(raw))
        if self._body is None:
            self.rest = data[size:]
            return Event.RESPONSE_END
        if size == len(data) or self._take_body(data[size:], actions) is MORE:
            return Event.RESPONSE
        return Event.RESPONSE_END

    def _take_body(self, data: bytes, actions: list[Action]) -> int:
        reader = self._body
        assert reader is not None  # a response without a body is complete in _begin
        taken = reader.feed(data)
        to_client(actions, data if taken == len(data) else data[:taken])
        if not reader.done:
            offer(Side.SERVER, reader.plain, taken, actions)
            return MORE
        self._body = None
        self.rest = data[taken:]
        return Event.RESPONSE_END

    def skip(self, count: int) -> bool:
        """`count` bytes of the response's body were spliced to the client. True when the body is complete."""
        reader = self._body
        assert reader is not None
        reader.skip(count)
        if reader.done:
            self._body = None
        return reader.done

    def _count_interim(self, head: ResponseHead) -> None:
        self._interim += 1
        if self.head.minor == 0:
            raise PeerError(f"{head.status} for an HTTP/1.0 request")
        if self._interim > bounds.MAX_INTERIM:
            raise PeerError(f"more than {bounds.MAX_INTERIM} interim responses")
        self.continued |= head.status == 100

    def _switches(self, head: ResponseHead) -> bool:
        """Whether the connection becomes a tunnel (RFC 9110 7.8, 9.3.6). PeerError if the client did not ask for it."""
        if self.head.method == b"CONNECT" and 200 <= head.status < 300:
            return True
        if head.status != 101:
            return False
        if self.head.minor == 0:
            raise PeerError("101 for an HTTP/1.0 request")
        if self.request_body is not None:
            raise PeerError("the server switched protocols before the request was complete")
        if len(head.upgrade) != 1 or head.upgrade[0] not in self.head.upgrade:
            raise PeerError("the server switched to a protocol that was not requested")
        return True


def to_client(actions: list[Action], data: bytes) -> None:
    """Append to a preceding ToClient: one write, one segment."""
    last = actions[-1] if actions else None
    if isinstance(last, ToClient):
        last.data += data
    else:
        actions.append(ToClient(data))
