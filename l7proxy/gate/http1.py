"""Judges HTTP/1 requests. Bytes in, actions out.

Laws (property-tested over any bytes, splits and ends):
 1. Each request is judged once, when it is taken up: one exchange at a time, pipelined requests wait their turn.
 2. Nothing of a request that is not allowed is ever in ToServer, and what is forwarded is what was judged.
 3. Each HttpRequest record is followed by exactly one HttpResponse record: the server's final status, or ours: 403
    denied, 400 a broken body, 408/504 too slow, 502/503 upstream trouble, 499 the client left first. What cannot be
    judged leaves exactly one Malformed record instead.
 4. Server bytes that answer no open exchange are never shown to the client.
The one clever thing is the common path: a whole head in one read, a whole response in another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgspec

from l7proxy.errors import PeerError
from l7proxy.flows.records import Conn, HttpRequest, HttpResponse, Judgement, Malformed
from l7proxy.gate import options as bounds
from l7proxy.gate.actions import Action, Close, Connect, Emit, HalfClose, Pause, Resume, Side, ToClient, ToServer
from l7proxy.gate.options import HttpOptions
from l7proxy.gate.replies import DENIED, printable, reply, sentence
from l7proxy.model.http import Request
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.wire import http1_fast, http1_strict
from l7proxy.wire.body import Body, body
from l7proxy.wire.head import CHUNKED, UNTIL_CLOSE, Header, RequestHead, ResponseHead
from l7proxy.wire.lines import HeadLines
from l7proxy.wire.path import EscapedSlashError


class _State(IntEnum):
    OPEN = 0
    TUNNEL = 1
    CLOSED = 2


OPEN, TUNNEL, CLOSED = _State
FORWARDED, AUDIT = Verdict.FORWARDED, Verdict.AUDIT  # every other verdict refuses
CLIENT, SERVER = Side.CLIENT, Side.SERVER

PROTOCOLS: Final = ("HTTP/1.0", "HTTP/1.1")
SWITCHING: Final = 101
NEVER_TUNNELLED: Final = (b"h2", b"h3", b"http", b"tls")
"""Upgrades to what would carry further requests past the judge: h2c, HTTP/2.0, TLS/1.2 (RFC 2817)."""


@dataclass(slots=True)
class _Exchange:
    """One request and its answer. `request_body` is None once the request has been read whole."""

    head: RequestHead
    record: HttpRequest
    request_body: Body | None
    allowed: bool = True
    drained: int = 0
    interim: int = 0
    continued: bool = False
    response: ResponseHead | None = None
    response_body: Body | None = None
    answered: bool = False


class HttpGate:
    """The gate of one client connection; see pick.Gate for how a session talks to it."""

    __slots__ = (
        "_asked",
        "_client_done",
        "_conn",
        "_connected",
        "_direction",
        "_exchange",
        "_half_closed",
        "_held",
        "_judge",
        "_now_ns",
        "_options",
        "_paused",
        "_request_lines",
        "_response_lines",
        "_server_done",
        "_server_held",
        "_state",
    )

    def __init__(
        self,
        judge: Callable[[Request], Judgement],
        conn: Conn,
        now_ns: Callable[[], int],
        options: HttpOptions,
        *,
        direction: Direction = Direction.INGRESS,
    ) -> None:
        """`direction` is what Malformed records carry: there, no rule has decided."""
        self._judge = judge
        self._conn = conn
        self._now_ns = now_ns
        self._options = options
        self._direction = direction
        self._state = OPEN
        self._exchange: _Exchange | None = None
        self._held = bytearray()  # from the client, not yet taken up
        self._server_held = bytearray()  # the beginning of a response head
        self._request_lines: HeadLines | None = None
        self._response_lines: HeadLines | None = None
        self._asked = False  # for the upstream connection
        self._connected = False
        self._client_done = False
        self._server_done = False
        self._half_closed = False  # the client's FIN has been passed on
        self._paused = False

    # --- what the session asks and tells -----------------------------------------------------------------------------

    @property
    def waiting_for(self) -> str:
        """See pick.Gate."""
        if self._state is not OPEN:
            return ("open", "tunnel", "closed")[self._state]
        exchange = self._exchange
        if exchange is None:
            return "head" if self._held else "idle"
        if exchange.allowed and not self._connected:
            return "connect"
        if exchange.response is not None and exchange.response_body is not None:
            return "body" if exchange.request_body else "transfer"
        awaits_continue = exchange.head.expect_continue and not exchange.continued and not exchange.answered
        return "body" if exchange.request_body and not awaits_continue else "response"

    def started(self) -> list[Action]:
        """Nothing yet: the server hears of a client only once a request is allowed."""
        return []

    def connected(self) -> list[Action]:
        self._connected = True
        return []

    def from_client(self, data: bytes) -> list[Action]:
        actions: list[Action] = []
        if self._state is not OPEN:
            if self._state is TUNNEL and not self._client_done:
                actions.append(ToServer(data))
            return actions
        if not self._held:
            exchange = self._exchange
            if exchange is None:
                head = http1_fast.request(data, self._options.paths)
                if isinstance(head, RequestHead):
                    self._begin(head, actions)
                    if head.size == len(data):
                        return actions
                    data = data[head.size :]
            elif exchange.request_body is not None:
                taken = self._take_body(exchange, exchange.request_body, data, actions)
                if taken == len(data) and self._exchange is exchange:
                    return actions
                data = data[taken:]
        if self._state is OPEN:
            self._held += data
            self._pump(actions)
        return actions

    def from_server(self, data: bytes) -> list[Action]:
        actions: list[Action] = []
        self._connected = True
        exchange = self._exchange
        if self._state is TUNNEL:
            actions.append(ToClient(data))
        elif self._state is not OPEN:
            pass
        elif exchange is None or not exchange.allowed or exchange.answered:
            self._close(actions)  # law 4: nobody asked
        else:
            self._take_response(exchange, data, actions)
        return actions

    def client_eof(self) -> list[Action]:
        actions: list[Action] = []
        self._client_done = True
        if self._state is OPEN:
            self._pump(actions)
        elif self._state is TUNNEL and self._server_done:
            self._close(actions)
        elif self._state is TUNNEL:
            actions.append(HalfClose(SERVER))
        return actions

    def server_eof(self) -> list[Action]:
        actions: list[Action] = []
        self._server_done = True
        exchange = self._exchange
        if self._state is TUNNEL:
            if self._client_done:
                self._close(actions)
            else:
                actions.append(HalfClose(CLIENT))
        elif self._state is OPEN:
            if exchange is None or not exchange.allowed or exchange.answered:
                self._close(actions)
            elif exchange.response is not None and exchange.response.framing == UNTIL_CLOSE:
                self._answered(exchange, b"", actions)
            else:
                self._fail(exchange, 502, "the server closed the connection before the end of its response", actions)
        return actions

    def client_lost(self, reason: str = "the client left") -> list[Action]:
        """The session ends for a reason of its own; the client hears nothing more."""
        actions: list[Action] = []
        exchange = self._exchange
        if self._state is OPEN and exchange is None and self._held.strip(b"\r\n"):
            self._emit_malformed(400, f"{reason} in the middle of a request head", actions)
        elif exchange is not None:
            self._abandon(exchange, f"{reason} before the end of the response", actions)
        self._close(actions)
        return actions

    def upstream_failed(self, reason: str) -> list[Action]:
        actions: list[Action] = []
        exchange = self._exchange
        if self._state is TUNNEL:
            self._close(actions, reset=True)
        elif self._state is OPEN:
            if exchange is not None and exchange.allowed and not exchange.answered:
                self._fail(exchange, 502 if self._connected else 503, f"upstream: {reason}", actions)
            else:
                self._close(actions)
        return actions

    def identified(self, conn: Conn) -> None:
        self._conn = conn

    def timed_out(self, which: str) -> list[Action]:
        actions: list[Action] = []
        if which != self.waiting_for:
            return actions  # a timer of the past
        exchange = self._exchange
        if which == "head":
            self._refuse(PeerError("the request head took too long", status=408), actions)
        elif exchange is not None and exchange.allowed and not exchange.answered:
            status = 408 if which == "body" else 504
            self._fail(exchange, status, f"timed out waiting for: {which}", actions)
        else:
            self._close(actions)
        return actions

    # --- the client's bytes ------------------------------------------------------------------------------------------

    def _pump(self, actions: list[Action]) -> None:
        """Work off what the client has sent, as far as it may go now."""
        held = self._held
        while self._state is OPEN:
            exchange = self._exchange
            if exchange is None:
                head = self._read_head(actions) if held else None
                if head is not None:
                    self._begin(head, actions)
                    continue
                if self._client_done and self._state is OPEN:
                    self._client_left(actions)
            elif exchange.request_body is not None:
                if held:
                    del held[: self._take_body(exchange, exchange.request_body, bytes(held), actions)]
                    continue
                if self._client_done:
                    self._abandon(exchange, "the client ended its request in the middle of the body", actions)
            elif self._client_done and not held and not self._half_closed:
                self._half_closed = True
                actions.append(HalfClose(SERVER))
            break
        self._regulate(actions)

    def _regulate(self, actions: list[Action]) -> None:
        full = self._state is OPEN and len(self._held) > bounds.MAX_HELD
        if full is not self._paused and self._state is not CLOSED:
            self._paused = full
            actions.append(Pause(CLIENT) if full else Resume(CLIENT))

    def _read_head(self, actions: list[Action]) -> RequestHead | None:
        """The next head of what is held, or None: it is incomplete, or it was refused."""
        held = self._held
        try:
            if self._request_lines is None:
                fast = http1_fast.request(bytes(held), self._options.paths)
                if isinstance(fast, RequestHead):
                    del held[: fast.size]
                    return fast
                if not http1_strict.refuse_tls(held):
                    return None
                self._request_lines = http1_strict.request_lines()
            lines = self._request_lines
            size = lines.feed(held)
            if not size:
                return None
            head = http1_strict.request_head(lines, bytes(held[lines.begin : size]), self._options.paths)
        except PeerError as error:
            self._refuse(error, actions)
            return None
        self._request_lines = None
        del held[:size]
        return head

    def _begin(self, head: RequestHead, actions: list[Action]) -> None:
        judgement = self._judge(Request(head.method, head.path, head.host, head.headers))
        record = HttpRequest(
            self._now_ns(),
            self._conn,
            judgement,
            head.method.decode(),
            self._url(head),
            PROTOCOLS[head.minor],
            self._shown(head.headers) if self._options.flow_headers else (),
        )
        actions.append(Emit(record))
        exchange = self._exchange = _Exchange(head, record, body(head.framing))
        if judgement.verdict is not FORWARDED and judgement.verdict is not AUDIT:
            exchange.allowed = False
            self._deny(exchange, actions)
            return
        if not self._asked:
            self._asked = True
            actions.append(Connect())
        actions.append(ToServer(head.raw))

    def _take_body(self, exchange: _Exchange, reader: Body, data: bytes, actions: list[Action]) -> int:
        """Pass on (or read away, after a denial) what of `data` is the request's body. Returns how much that is."""
        try:
            taken = reader.feed(data)
        except PeerError as error:
            if exchange.allowed and not exchange.answered:
                self._fail(exchange, error.status, str(error), actions)
            else:
                self._close(actions)
            return len(data)
        if exchange.allowed:
            _to_server(actions, data if taken == len(data) else data[:taken])
        else:
            exchange.drained += taken
        if reader.done:
            exchange.request_body = None
            if not exchange.allowed or exchange.answered:
                self._next(actions)
        elif exchange.drained > bounds.MAX_DRAINED:
            self._close(actions)
        return taken

    def _next(self, actions: list[Action]) -> None:
        """The exchange is over on both sides and the connection may go on."""
        self._exchange = None
        if self._server_done:
            self._close(actions)

    def _client_left(self, actions: list[Action]) -> None:
        """FIN between requests, or inside a head."""
        if self._held.strip(b"\r\n"):
            self._refuse(PeerError("the request head was cut off"), actions)
        else:
            self._close(actions)

    def _abandon(self, exchange: _Exchange, reason: str, actions: list[Action]) -> None:
        """The client gives up. 499, unless the server's status has been shown."""
        if exchange.allowed and not exchange.answered:
            response = exchange.response
            self._emit_response(exchange, 499 if response is None else response.status, reason, actions)
        self._close(actions)

    # --- the server's bytes ------------------------------------------------------------------------------------------

    def _take_response(self, exchange: _Exchange, data: bytes, actions: list[Action]) -> None:
        try:
            if exchange.response is None and not self._server_held:
                fast = http1_fast.response(data, exchange.head.method)
                if isinstance(fast, ResponseHead):
                    self._begin_response(exchange, fast, data, actions)
                    return
            while data and self._state is OPEN:
                if exchange.response is not None:
                    self._take_response_body(exchange, data, actions)
                    return
                head = self._read_response_head(exchange, data)
                if head is None:
                    return
                data = bytes(self._server_held)
                self._server_held.clear()
                if head.status >= 200:
                    self._begin_response(exchange, head, data, actions)
                    return
                data = data[len(head.raw) :]
                self._take_interim(exchange, head, actions)
        except PeerError as error:
            self._fail(exchange, 502, f"bad response: {error}", actions)
            return
        if data and self._state is TUNNEL:
            _to_client(actions, data)

    def _read_response_head(self, exchange: _Exchange, data: bytes) -> ResponseHead | None:
        """The strict reading of what is held and `data`: both are held then. None while the head is incomplete."""
        held = self._server_held
        held += data
        lines = self._response_lines = self._response_lines or http1_strict.response_lines()
        size = lines.feed(held)
        if not size:
            return None
        self._response_lines = None
        return http1_strict.response_head(lines, bytes(held[:size]), exchange.head.method)

    def _begin_response(self, exchange: _Exchange, head: ResponseHead, data: bytes, actions: list[Action]) -> None:
        """`data` begins with `head`. In the common case it ends with the response, too."""
        exchange.response = head
        size = len(head.raw)
        if size + head.framing == len(data):
            actions.append(ToClient(data))
            self._answered(exchange, b"", actions)
            return
        exchange.response_body = body(head.framing)
        actions.append(ToClient(head.raw))
        if exchange.response_body is None:
            self._answered(exchange, data[size:], actions)
        elif size < len(data):
            self._take_response_body(exchange, data[size:], actions)

    def _take_interim(self, exchange: _Exchange, head: ResponseHead, actions: list[Action]) -> None:
        exchange.interim += 1
        if exchange.head.minor == 0:
            raise PeerError(f"{head.status} for an HTTP/1.0 request")
        if exchange.interim > bounds.MAX_INTERIM:
            raise PeerError(f"more than {bounds.MAX_INTERIM} interim responses")
        if head.status == SWITCHING:
            self._open_tunnel(exchange, head, actions)
            return
        exchange.continued |= head.status == 100
        _to_client(actions, head.raw)

    def _open_tunnel(self, exchange: _Exchange, head: ResponseHead, actions: list[Action]) -> None:
        """RFC 9110 7.8: to one of the protocols asked for, after the whole request. Never to one that is judged."""
        if exchange.request_body is not None:
            raise PeerError("the protocol was switched in the middle of the request")
        if len(head.upgrade) != 1 or head.upgrade[0] not in exchange.head.upgrade:
            raise PeerError("the protocol was switched to one that was not asked for")
        if head.upgrade[0].startswith(NEVER_TUNNELLED):
            raise PeerError(f"the protocol was switched to {head.upgrade[0].decode()}, which carries requests unjudged")
        _to_client(actions, head.raw)
        self._emit_response(exchange, SWITCHING, "", actions)
        exchange.answered = True
        self._state = TUNNEL
        if self._held:
            actions.append(ToServer(bytes(self._held)))
            self._held.clear()
        if self._client_done and not self._half_closed:
            self._half_closed = True
            actions.append(HalfClose(SERVER))
        self._regulate(actions)

    def _take_response_body(self, exchange: _Exchange, data: bytes, actions: list[Action]) -> None:
        reader = exchange.response_body
        assert reader is not None  # a response without a body has been answered at once
        taken = reader.feed(data)
        _to_client(actions, data if taken == len(data) else data[:taken])
        if reader.done:
            self._answered(exchange, data[taken:], actions)

    def _answered(self, exchange: _Exchange, rest: bytes, actions: list[Action]) -> None:
        """The response is complete. `rest` answers nothing: whoever sends it cannot be trusted with a next request."""
        response = exchange.response
        assert response is not None
        exchange.answered = True
        exchange.response_body = None
        self._emit_response(exchange, response.status, "", actions)
        # A client that awaited 100 may send the body or another request: the server may guess otherwise than we do.
        uncertain = exchange.head.expect_continue and not exchange.continued and exchange.request_body is not None
        if rest or uncertain or not (exchange.head.keep_alive and response.keep_alive):
            self._close(actions)
        elif exchange.request_body is None:
            self._next(actions)
            if self._held or self._client_done:
                self._pump(actions)

    # --- ends --------------------------------------------------------------------------------------------------------

    def _deny(self, exchange: _Exchange, actions: list[Action]) -> None:
        head = exchange.head
        stays = (
            head.keep_alive
            and head.minor == 1
            and not head.expect_continue
            and (head.framing == CHUNKED or head.framing <= bounds.MAX_DRAINED)
        )
        reason = printable(exchange.record.judgement.reason)
        fields = b"x-l7proxy-denied: %b\r\n" % reason if self._options.deny_header and reason else b""
        actions.append(
            ToClient(reply(403, DENIED, close=not stays, head_only=head.method == b"HEAD", fields=fields)),
        )
        self._emit_response(exchange, 403, "", actions)
        exchange.answered = True
        if not stays:
            self._close(actions)
        elif exchange.request_body is None:
            self._next(actions)

    def _refuse(self, error: PeerError, actions: list[Action]) -> None:
        """Bytes that are no request we could judge: one Malformed record, an answer, the end."""
        fields = b"location: %b\r\n" % error.location if isinstance(error, EscapedSlashError) else b""
        actions.append(ToClient(reply(error.status, sentence(str(error)), close=True, fields=fields)))
        self._emit_malformed(error.status, str(error), actions)
        self._close(actions)

    def _fail(self, exchange: _Exchange, status: int, reason: str, actions: list[Action]) -> None:
        """An allowed request that cannot be completed: answered by us, or cut where the server's answer broke off."""
        if exchange.response is not None:
            self._emit_response(exchange, exchange.response.status, reason, actions)
            self._close(actions, reset=True)
            return
        head_only = exchange.head.method == b"HEAD"
        actions.append(ToClient(reply(status, sentence(reason), close=True, head_only=head_only)))
        self._emit_response(exchange, status, reason, actions)
        self._close(actions)

    def _close(self, actions: list[Action], *, reset: bool = False) -> None:
        if self._state is CLOSED:
            return
        self._state = CLOSED
        self._exchange = None
        self._held.clear()
        self._server_held.clear()
        actions.append(Close(reset))

    # --- records -----------------------------------------------------------------------------------------------------

    def _emit_response(self, exchange: _Exchange, status: int, reason: str, actions: list[Action]) -> None:
        """The one HttpResponse of an exchange. `reason`: why it is ours, or why it broke off; empty if it is whole."""
        asked = exchange.record
        judgement = msgspec.structs.replace(asked.judgement, reason=reason) if reason else asked.judgement
        response = exchange.response
        shown = self._shown(response.headers) if response is not None and self._options.flow_headers else ()
        now = self._now_ns()
        actions.append(
            Emit(
                HttpResponse(
                    now,
                    asked.conn,
                    judgement,
                    asked.method,
                    asked.url,
                    asked.protocol,
                    status,
                    now - asked.time_ns,
                    shown,
                )
            )
        )

    def _emit_malformed(self, status: int, reason: str, actions: list[Action]) -> None:
        judgement = Judgement(Verdict.DROPPED, self._direction, reason=reason)
        actions.append(Emit(Malformed(self._now_ns(), self._conn, judgement, status)))

    def _url(self, head: RequestHead) -> str:
        path = head.path if self._options.flow_query else head.path.partition(b"?")[0]
        return (b"http://" + head.host + (b"" if path == b"*" else path)).decode()

    def _shown(self, headers: list[Header]) -> tuple[tuple[str, str], ...]:
        wanted = self._options.flow_headers
        return tuple((name.decode(), value.decode("latin-1")) for name, value in headers if name in wanted)


def _to_server(actions: list[Action], data: bytes) -> None:
    """Neighbours are joined: one write, one segment."""
    last = actions[-1] if actions else None
    if isinstance(last, ToServer):
        last.data += data
    else:
        actions.append(ToServer(data))


def _to_client(actions: list[Action], data: bytes) -> None:
    last = actions[-1] if actions else None
    if isinstance(last, ToClient):
        last.data += data
    else:
        actions.append(ToClient(data))
