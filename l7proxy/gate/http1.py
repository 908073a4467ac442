"""Enforces policy on HTTP/1 requests. Bytes in, actions out.

Laws (property-tested over any bytes, splits and ends):
 1. Each request is evaluated when its exchange begins: one exchange at a time, pipelined requests wait. While it is in
    progress it is evaluated again whenever policy changes; if it is refused then, a Connection record is emitted.
 2. No byte of a request that is not allowed is ever in ToServer; what is forwarded is what was evaluated.
 3. Each HttpRequest record is followed by exactly one HttpResponse record: the server's final status, or ours: 403
    denied, 400 invalid body, 408/504 timeout, 502/503 upstream error, 499 the client left first. Bytes that are not a
    valid request leave exactly one Malformed record. The client sees what is recorded, except for 499 and
    `_upstream_failed`.
 4. Server bytes that belong to no open exchange are never sent to the client.
The common path is optimised: a whole head in one read, a whole response in another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from l7proxy.errors import PeerError
from l7proxy.gate import options as bounds
from l7proxy.gate.access_log import HTTP1, AccessLog
from l7proxy.gate.actions import Action, Close, Connect, Emit, HalfClose, Pause, Phase, Resume, Side, ToClient, ToServer
from l7proxy.gate.bulk import offer
from l7proxy.gate.http1_exchange import Exchange, to_client
from l7proxy.gate.http1_state import Event, State, following, phase, unanswered, uploading
from l7proxy.gate.options import HttpOptions
from l7proxy.gate.replies import DENIED, printable, reply, sentence
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.policy.combine import revoked
from l7proxy.wire import http1_fast, http1_strict, rewrite, trace_id
from l7proxy.wire.body import ENDLESS, Body, body
from l7proxy.wire.head import CHUNKED, MAX_HEAD, RequestHead
from l7proxy.wire.lines import HeadLines
from l7proxy.wire.path import EscapedSlashError

FORWARDED: Final = Verdict.FORWARDED
AUDIT: Final = Verdict.AUDIT
"""AUDIT and FORWARDED are the only verdicts that allow a request."""
CLIENT: Final = Side.CLIENT
SERVER: Final = Side.SERVER
IDLE: Final = Phase.IDLE
HEAD: Final = Phase.HEAD
CONNECT: Final = Phase.CONNECT


class HttpGate:
    """The gate of one HTTP/1 client connection; see actions.Gate for its methods."""

    __slots__ = (
        "_asked",
        "_client_done",
        "_connected",
        "_denied",
        "_exchange",
        "_half_closed",
        "_held",
        "_judge",
        "_leaving",
        "_log",
        "_options",
        "_paused",
        "_request_lines",
        "_reused",
        "_state",
    )

    def __init__(
        self,
        judge: Callable[[Request], PolicyVerdict],
        conn: Conn,
        now_ns: Callable[[], int],
        options: HttpOptions,
        *,
        direction: Direction = Direction.INGRESS,
    ) -> None:
        """`direction` is that of Malformed records, which no rule has decided."""
        self._judge = judge
        self._options = options
        self._log = AccessLog(conn, now_ns, options, direction)
        self._state = State.HEAD
        self._exchange: Exchange | None = None
        self._held = bytearray()  # from the client, not yet processed
        self._request_lines: HeadLines | None = None
        self._asked = False  # Connect has been requested
        self._connected = False
        self._client_done = False
        self._reused = False  # the upstream connection has served an exchange and stays open
        self._denied = 0  # requests from the current read
        self._half_closed = False  # the client's FIN has been forwarded
        self._paused = False
        self._leaving = False  # the proxy stops: the next response is the last one of this connection

    # --- calls from the session --------------------------------------------------------------------------------------

    def must_read(self, side: Side) -> bool:
        """True for the client, except while it sends an allowed request's body: many send all of it before reading."""
        return side is CLIENT and self._state < State.TUNNEL and not uploading(self._state)

    @property
    def waiting_for(self) -> Phase:
        """See actions.Gate."""
        state = self._state
        if state == State.HEAD:
            return HEAD if self._held else IDLE
        if self._asked and not self._connected and state != State.CLOSED:
            return CONNECT
        if state == State.SENDING and self._exchange is not None and self._exchange.awaits_continue:
            state = State.AWAITING
        return phase(state)

    @property
    def held(self) -> int:
        """See actions.Gate."""
        exchange = self._exchange
        return len(self._held) + (exchange.held if exchange is not None else 0)

    def started(self) -> list[Action]:
        """No action: the upstream connection is opened only for an allowed request."""
        return []

    def connected(self) -> list[Action]:
        self._connected = True
        return []

    def from_client(self, data: bytes) -> list[Action]:
        actions: list[Action] = []
        self._denied = 0
        exchange = self._exchange
        if self._held:
            pass
        elif self._state == State.HEAD:
            head = http1_fast.request(data, self._options.paths)
            if isinstance(head, RequestHead):
                self._begin(head, actions)
                if head.size == len(data):
                    return actions
                data = data[head.size :]
        elif exchange is not None and exchange.request_body is not None:
            taken = self._take_body(exchange, exchange.request_body, data, actions)
            if taken == len(data) and self._exchange is exchange:
                return actions
            data = data[taken:]
        elif self._state == State.TUNNEL or self._state == State.TO_SERVER:
            actions.append(ToServer(data))
            offer(CLIENT, ENDLESS, len(data), actions)
        if self._state < State.TUNNEL:
            self._held += data
            self._pump(actions)
        return actions

    def from_server(self, data: bytes) -> list[Action]:
        actions: list[Action] = []
        self._connected = True
        exchange = self._exchange
        if exchange is not None and unanswered(self._state):
            self._take_response(exchange, data, actions)
        elif self._state == State.TUNNEL or self._state == State.TO_CLIENT:
            actions.append(ToClient(data))
            offer(SERVER, ENDLESS, len(data), actions)
        elif self._state < State.TUNNEL:
            self._close(actions)  # law 4: no open exchange
        return actions

    def spliced(self, source: Side, count: int) -> list[Action]:
        actions: list[Action] = []
        exchange = self._exchange
        if exchange is None or self._state >= State.TUNNEL:
            return actions
        if source is SERVER:
            if exchange.skip(count):
                self._answered(exchange, actions)
        elif exchange.request_body is not None:
            exchange.request_body.skip(count)
            self._end_body(exchange, exchange.request_body, actions)
            self._pump(actions)
        return actions

    def client_eof(self) -> list[Action]:
        actions: list[Action] = []
        self._client_done = True
        if self._state < State.TUNNEL:
            self._pump(actions)
        elif self._state == State.TO_SERVER:
            self._close(actions)
        elif self._state == State.TUNNEL:
            self._move(Event.CLIENT_EOF)
            actions.append(HalfClose(SERVER))
        return actions

    def server_eof(self) -> list[Action]:
        actions: list[Action] = []
        exchange = self._exchange
        if self._state == State.TUNNEL:
            self._move(Event.SERVER_EOF)
            actions.append(HalfClose(CLIENT))
        elif exchange is None or not unanswered(self._state):
            self._close(actions)
        elif exchange.ends_with_connection:
            self._answered(exchange, actions)
        else:
            self._upstream_failed(
                exchange, "the server closed the connection before the response was complete", actions
            )
        return actions

    def client_lost(self, reason: str = "the client closed the connection") -> list[Action]:
        """The session ends for a reason of its own; nothing more is sent to the client."""
        actions: list[Action] = []
        exchange = self._exchange
        if exchange is None and self._held.strip(b"\r\n"):
            actions.append(Emit(self._log.malformed(400, f"{reason} before the request head was complete")))
        elif exchange is not None:
            self._abandon(exchange, f"{reason} before the response was complete", actions)
        self._close(actions)
        return actions

    def upstream_failed(self, reason: str) -> list[Action]:
        actions: list[Action] = []
        exchange = self._exchange
        if exchange is None or not unanswered(self._state):
            self._close(actions, reset=self._state >= State.TUNNEL)
        elif self._connected:
            self._upstream_failed(exchange, f"upstream: {reason}", actions, reset=True)
        else:
            self._fail(exchange, 503, f"upstream: {reason}", actions)
        return actions

    def identified(self, conn: Conn) -> None:
        self._log.conn = conn

    def policy_changed(self) -> list[Action]:
        """Evaluate the request in progress again, or the one that opened a tunnel; if it is refused, end it."""
        actions: list[Action] = []
        exchange = self._exchange
        if exchange is not None and self._state != State.DISCARDING:
            head = exchange.head
            policy_verdict = self._judge(Request(head.method, head.path, head.host, head))
            if not _allows(policy_verdict):
                self._revoke(exchange, revoked(policy_verdict), actions)
        return actions

    def draining(self) -> list[Action]:
        """HTTP/1 has no GOAWAY: the next response says `Connection: close`, and is the last one."""
        self._leaving = True
        if self._exchange is not None:
            self._exchange.is_last = True
        return []

    def timed_out(self, which: Phase) -> list[Action]:
        actions: list[Action] = []
        if which is not self.waiting_for:
            return actions  # a stale timer
        exchange = self._exchange
        if which is Phase.HEAD:
            self._refuse(PeerError("timed out waiting for the request head", status=408), actions)
        elif exchange is not None and unanswered(self._state):
            self._fail(exchange, 408 if which is Phase.BODY else 504, f"{which.name.lower()} timeout", actions)
        else:
            self._close(actions)
        return actions

    # --- the client's bytes ------------------------------------------------------------------------------------------

    def _pump(self, actions: list[Action]) -> None:
        """Process the client's buffered bytes as far as possible now."""
        held = self._held
        while self._state < State.TUNNEL:
            exchange = self._exchange
            if exchange is None:
                head = self._read_head(actions) if held else None
                if head is not None:
                    self._begin(head, actions)
                    continue
                if self._client_done and self._state == State.HEAD:
                    self._client_left(actions)
            elif exchange.request_body is not None:
                if held:
                    reader = exchange.request_body
                    del held[: self._take_body(exchange, reader, bytes(held[: reader.plain or len(held)]), actions)]
                    continue
                if self._client_done:
                    self._abandon(
                        exchange, "the client closed the connection before the request body was complete", actions
                    )
            elif self._client_done and not held and not self._half_closed:
                self._half_closed = True
                actions.append(HalfClose(SERVER))
            break
        self._regulate(actions)

    def _regulate(self, actions: list[Action]) -> None:
        full = self._state < State.TUNNEL and len(self._held) > bounds.MAX_HELD
        if full is not self._paused and self._state != State.CLOSED:
            self._paused = full
            actions.append(Pause(CLIENT) if full else Resume(CLIENT))

    def _read_head(self, actions: list[Action]) -> RequestHead | None:
        """The next head in the buffer; None when it is incomplete or was refused."""
        held = self._held
        try:
            if self._request_lines is None:
                end = held.find(b"\r\n\r\n", 0, MAX_HEAD)
                # Copy only this head: the buffer may hold many pipelined requests.
                first = bytes(held[: end + 4]) if end >= 0 else b""
                fast = http1_fast.request(first, self._options.paths)
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
        request = Request(head.method, head.path, head.host, head)
        policy_verdict = self._judge(request)
        traced = trace_id.of_head(head.raw) if head.traced else ""
        record = self._log.request(request, policy_verdict, HTTP1[head.minor], traced)
        actions.append(Emit(record))
        reader = body(head.framing, request.judged() if head.framing == CHUNKED else ())
        exchange = self._exchange = Exchange(head, request, record, reader)
        exchange.is_last = self._leaving
        if not _allows(policy_verdict):
            self._deny(exchange, actions)
            return
        self._move(Event.REQUEST if reader is None else Event.UPLOAD)
        if not self._asked:
            self._asked = True
            actions.append(Connect())
        actions.append(ToServer(head.raw if request.rewrite is None else rewrite.head(head.raw, request.rewrite.edits)))

    def _take_body(self, exchange: Exchange, reader: Body, data: bytes, actions: list[Action]) -> int:
        """Forward the part of `data` that is the request's body (after a denial, discard it). Returns its length."""
        try:
            taken = reader.feed(data)
        except PeerError as error:
            if unanswered(self._state):
                self._fail(exchange, error.status, str(error), actions)
            else:
                self._close(actions)
            return len(data)
        if self._state == State.DISCARDING:
            exchange.drained += taken
        else:
            _to_server(actions, data if taken == len(data) else data[:taken])
            offer(CLIENT, reader.plain, taken, actions)
        self._end_body(exchange, reader, actions)
        return taken

    def _end_body(self, exchange: Exchange, reader: Body, actions: list[Action]) -> None:
        """Go on if the body is complete; close if too much of a denied request's body was discarded."""
        if reader.done:
            exchange.request_body = None
            self._move(Event.REQUEST_END)
        elif exchange.drained > bounds.MAX_DRAINED:
            self._close(actions)

    def _client_left(self, actions: list[Action]) -> None:
        """The client's FIN between requests or inside a head."""
        if self._held.strip(b"\r\n"):
            self._refuse(PeerError("incomplete request head"), actions)
        else:
            self._close(actions)

    def _abandon(self, exchange: Exchange, reason: str, actions: list[Action]) -> None:
        """The client gives up: 499, unless the server's status has already been sent to it."""
        if unanswered(self._state):
            response = exchange.response
            self._emit_response(exchange, 499 if response is None else response.status, reason, actions)
        self._close(actions)

    # --- the server's bytes ------------------------------------------------------------------------------------------

    def _take_response(self, exchange: Exchange, data: bytes, actions: list[Action]) -> None:
        try:
            event = exchange.hear(data, actions)
        except PeerError as error:
            self._fail(exchange, 502, f"invalid response: {error}", actions)
            return
        if event == Event.RESPONSE_END:
            self._answered(exchange, actions)
        elif event == Event.SWITCH:
            self._open_tunnel(exchange, actions)
        elif event == Event.RESPONSE:
            self._move(event)

    def _answered(self, exchange: Exchange, actions: list[Action]) -> None:
        """The response is complete. Bytes after it belong to no request: a server that sends some is not reused."""
        response = exchange.response
        assert response is not None
        self._emit_response(exchange, response.status, "", actions)
        # A client that waited for 100 may send the body or a new request: server and proxy may read it differently.
        uncertain = exchange.head.expect_continue and not exchange.continued and exchange.request_body is not None
        kept = exchange.head.keep_alive and response.keep_alive and not exchange.told_last
        if exchange.rest or uncertain or not kept:
            self._close(actions)
            return
        self._move(Event.RESPONSE_END)
        if self._state == State.HEAD:
            self._reused = True
            if self._held or self._client_done:
                self._pump(actions)

    def _open_tunnel(self, exchange: Exchange, actions: list[Action]) -> None:
        """The server has switched protocols. Forward what the client sent early, buffered until now."""
        response = exchange.response
        assert response is not None
        self._emit_response(exchange, response.status, "", actions)
        self._move(Event.SWITCH)
        if self._held:
            actions.append(ToServer(bytes(self._held)))
            self._held.clear()
        if self._client_done:
            self._move(Event.CLIENT_EOF)
            if not self._half_closed:
                actions.append(HalfClose(SERVER))
        if exchange.rest:
            to_client(actions, exchange.rest)
        self._regulate(actions)

    # --- ends --------------------------------------------------------------------------------------------------------

    def _deny(self, exchange: Exchange, actions: list[Action]) -> None:
        head = exchange.head
        self._denied += 1
        stays = (
            head.keep_alive
            and head.minor == 1
            and not head.expect_continue
            and not self._leaving
            and self._denied < bounds.MAX_DENIED
            and (head.framing == CHUNKED or head.framing <= bounds.MAX_DRAINED)
        )
        reason = printable(exchange.record.policy_verdict.reason)
        fields = b"x-l7proxy-denied: %b\r\n" % reason if self._options.deny_header and reason else b""
        actions.append(
            ToClient(reply(403, DENIED, close=not stays, head_only=head.method == b"HEAD", fields=fields)),
        )
        self._emit_response(exchange, 403, "", actions)
        self._move(Event.DENIED if exchange.request_body is None else Event.DENIED_UPLOAD)
        if not stays:
            self._close(actions)

    def _revoke(self, exchange: Exchange, policy_verdict: PolicyVerdict, actions: list[Action]) -> None:
        """Policy now refuses the request. The client gets 403, or a broken response if one has begun."""
        shown = exchange.response
        if unanswered(self._state):
            if shown is None:
                actions.append(ToClient(reply(403, DENIED, close=True, head_only=exchange.head.method == b"HEAD")))
            self._emit_response(exchange, 403 if shown is None else shown.status, policy_verdict.reason, actions)
        actions.append(Emit(self._log.connection(policy_verdict)))
        self._close(actions, reset=shown is not None, revoked=True)

    def _refuse(self, error: PeerError, actions: list[Action]) -> None:
        """Bytes that are not a valid request: send an error, emit one Malformed record, close."""
        fields = b"location: %b\r\n" % error.location if isinstance(error, EscapedSlashError) else b""
        lines = self._request_lines
        head_only = lines is not None and lines.start.startswith(b"HEAD ")
        text = sentence(str(error))
        actions.append(ToClient(reply(error.status, text, close=True, head_only=head_only, fields=fields)))
        actions.append(Emit(self._log.malformed(error.status, str(error))))
        self._close(actions)

    def _fail(self, exchange: Exchange, status: int, reason: str, actions: list[Action]) -> None:
        """An allowed request cannot be completed: send an error, or reset if the server's response has begun."""
        if exchange.response is not None:
            self._emit_response(exchange, exchange.response.status, reason, actions)
            self._close(actions, reset=True)
            return
        head_only = exchange.head.method == b"HEAD"
        actions.append(ToClient(reply(status, sentence(reason), close=True, head_only=head_only)))
        self._emit_response(exchange, status, reason, actions)
        self._close(actions)

    def _upstream_failed(self, exchange: Exchange, reason: str, actions: list[Action], *, reset: bool = False) -> None:
        """The server is gone. If it closes a reused connection just as the next request comes, close the client's too,
        without a response: clients know this race and retry (RFC 9112 9.3.1); a response would prevent the retry."""
        if self._reused and exchange.unheard:
            self._emit_response(
                exchange, 502, f"{reason}; the client connection was closed too, so that the client can retry", actions
            )
            self._close(actions, reset=reset)
        else:
            self._fail(exchange, 502, reason, actions)

    def _close(self, actions: list[Action], *, reset: bool = False, revoked: bool = False) -> None:
        if self._state == State.CLOSED:
            return
        self._move(Event.CLOSE)
        self._exchange = None
        self._held.clear()
        actions.append(Close(reset, revoked))

    def _move(self, event: int) -> None:
        self._state = following(self._state, event)
        if self._state == State.HEAD:
            self._exchange = None

    def _emit_response(self, exchange: Exchange, status: int, reason: str, actions: list[Action]) -> None:
        """Emit the exchange's only HttpResponse record."""
        actions.append(Emit(self._log.response(exchange.record, status, reason, exchange.response)))


def _allows(policy_verdict: PolicyVerdict) -> bool:
    return policy_verdict.verdict is FORWARDED or policy_verdict.verdict is AUDIT


def _to_server(actions: list[Action], data: bytes) -> None:
    """Append to a preceding ToServer: one write, one segment."""
    last = actions[-1] if actions else None
    if isinstance(last, ToServer):
        last.data += data
    else:
        actions.append(ToServer(data))
