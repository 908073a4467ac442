"""Judges HTTP/2: one client connection, at most one server connection, every stream on its own. Bytes in, actions out.

Laws (property-tested over any bytes, splits and ends):
 1. A request is judged once, when its header block is complete, by the policy then in force.
 2. Nothing of a request that is not allowed reaches the server, and what is forwarded is what was judged. Not one byte
    of a request goes to a server that has not said that it speaks HTTP/2 (its SETTINGS): another might take a body
    for requests.
 3. Each HttpRequest record is followed by exactly one HttpResponse record: the server's final status, or ours, as in
    HTTP/1 (http1.py). What cannot be judged leaves one Malformed record instead.
 4. What the client may make us hold is bounded: windows (http2_relay), MAX_STREAMS, MAX_HELD heads, and a budget for
    whatever else it sends (http2_budget).
The preface has been read when this gate begins (pick.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from l7proxy.errors import PeerError
from l7proxy.flows.records import Conn, Judgement
from l7proxy.gate import options as bounds
from l7proxy.gate.access_log import HTTP2, AccessLog
from l7proxy.gate.actions import Action, Close, Connect, Emit, HalfClose, Pause, Resume, Side, ToClient, ToServer
from l7proxy.gate.http2_answers import plain, trailers_only
from l7proxy.gate.http2_budget import FINISHED, REFUSED, RESET
from l7proxy.gate.http2_peer import Peer
from l7proxy.gate.http2_relay import Half, Relay
from l7proxy.gate.http2_stream import Stream
from l7proxy.gate.options import HttpOptions
from l7proxy.gate.replies import DENIED, printable, sentence
from l7proxy.model.http import Request, Rewrite, edited
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.wire import http2_frames as frames
from l7proxy.wire import http2_head
from l7proxy.wire.head import Header
from l7proxy.wire.http2_fields import FieldBlock
from l7proxy.wire.http2_frames import END_STREAM, MAX_STREAM, PREFACE, Code, Http2Error, Setting, code_name
from l7proxy.wire.path import EscapedSlashError

MAX_STREAMS: Final = 100
"""Of one client at a time (the least that RFC 9113 6.5.2 recommends). A stream counts until its client has been told
of its end, so that no burst of requests in one read is more than this either."""

CLIENT, SERVER = Side.CLIENT, Side.SERVER
FORWARDED, AUDIT = Verdict.FORWARDED, Verdict.AUDIT  # every other verdict refuses
_GOODBYE: Final = b"l7proxy!"
"""The PING that asks whether the client has heard that we are leaving."""


class Http2Gate:
    """The gate of one client connection; see pick.Gate for how a session talks to it."""

    __slots__ = (
        "_actions",
        "_asked",
        "_client",
        "_client_done",
        "_closed",
        "_connected",
        "_down",
        "_judge",
        "_last",
        "_leaving",
        "_log",
        "_options",
        "_parting",
        "_paused",
        "_promised",
        "_server",
        "_server_done",
        "_server_last",
        "_streams",
        "_up",
        "_waiting",
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
        self._options = options
        self._log = AccessLog(conn, now_ns, options, direction)
        towards_client = [(Setting.MAX_CONCURRENT_STREAMS, MAX_STREAMS), (Setting.NO_RFC7540_PRIORITIES, 1)]
        self._client = Peer(_FromClient(self), now_ns, towards_client, b"")
        self._server = Peer(_FromServer(self), now_ns, [(Setting.ENABLE_PUSH, 0)], PREFACE)
        self._up = Relay(self._client, self._server)
        self._down = Relay(self._server, self._client)
        self._streams: dict[int, Stream] = {}
        self._waiting: dict[int, Stream] = {}  # allowed, and not yet forwarded
        self._actions: list[Action] = []
        self._last = 0  # the client's last stream
        self._promised = MAX_STREAM  # no later one is looked at (GOAWAY)
        self._server_last = MAX_STREAM
        self._asked = False  # for the upstream connection
        self._connected = False
        self._client_done = False
        self._server_done = False
        self._leaving = False  # the connection ends with its last stream
        self._parting = False  # as that, but the client may not know yet
        self._paused = False
        self._closed = False

    # --- what the session asks and tells -----------------------------------------------------------------------------

    @property
    def waiting_for(self) -> str:
        """See pick.Gate."""
        if self._closed:
            return "closed"
        client = self._client
        if client.in_block or not client.settled:
            return "head"
        if self._streams:
            return "transfer" if self._connected or not self._asked else "connect"
        if self._parting:
            return "transfer"  # nothing is, but the connection is not idle
        return "head" if client.in_frame else "idle"

    def started(self) -> list[Action]:
        """Our SETTINGS. The server hears of a client only once a request is allowed."""
        return self._flush()

    def connected(self) -> list[Action]:
        self._connected = True
        return []

    def from_client(self, data: bytes) -> list[Action]:
        if self._closed or self._client_done:
            return []
        try:
            self._client.receive(data)
        except Http2Error as error:
            self._broken(error)
        return self._flush()

    def from_server(self, data: bytes) -> list[Action]:
        if self._closed or self._server_done:
            return []
        self._connected = True
        try:
            if not self._server.settled and data.startswith(b"HTTP/"):
                raise Http2Error("it speaks HTTP/1, not HTTP/2")
            self._server.receive(data)
        except Http2Error as error:
            self._server.out.append(frames.goaway(0, error.code))
            self._to_server()
            self._actions.append(HalfClose(SERVER))
            self._lose_server(502, f"bad response: {error}")
        return self._flush()

    def client_eof(self) -> list[Action]:
        """Answers that need nothing more of the client still go out."""
        if self._closed or self._client_done:
            return []
        self._client_done = self._leaving = True
        for stream in list(self._streams.values()):
            if not stream.up.ended:
                self._abandon(stream, "the client ended the connection in the middle of its request")
        return self._flush()

    def server_eof(self) -> list[Action]:
        if self._closed or self._server_done:
            return []
        why = "before the end of its response" if self._server.settled else "before it had spoken HTTP/2"
        self._lose_server(502, f"the server closed the connection {why}")
        return self._flush()

    def client_lost(self, reason: str = "the client left") -> list[Action]:
        """The session ends for a reason of its own; the client hears nothing more."""
        if self._closed:
            return []
        if self._client.in_block:
            self._emit_malformed(400, f"{reason} in the middle of a request head")
        self._tell_all(f"{reason} before the end of the response")
        self._close()
        return self._flush()

    def upstream_failed(self, reason: str) -> list[Action]:
        if self._closed or self._server_done:
            return []
        self._lose_server(502 if self._connected else 503, f"upstream: {reason}")
        return self._flush()

    def identified(self, conn: Conn) -> None:
        self._log.conn = conn

    def policy_changed(self) -> list[Action]:
        """Streams to come are judged by it."""
        return []

    def draining(self) -> list[Action]:
        """The worker stops: say goodbye, and once that has been heard take no more streams (RFC 9113 6.8)."""
        if self._closed or self._leaving or self._parting:
            return []
        self._parting = True
        self._client.out.append(frames.goaway(self._promised, Code.NO_ERROR, b"the proxy is stopping"))
        self._client.out.append(frames.frame(frames.PING, 0, 0, _GOODBYE))
        return self._flush()

    def timed_out(self, which: str) -> list[Action]:
        if self._closed or which != self.waiting_for:
            return []  # a timer of the past
        if which == "head":
            self._broken(Http2Error("the request head took too long", Code.ENHANCE_YOUR_CALM, status=408))
            return self._flush()
        for stream in list(self._streams.values()):
            self._fail(stream, 504 if stream.up.ended else 408, f"timed out waiting for: {which}")
        self._leave(b"timed out")
        self._flush_streams()
        self._close()
        return self._flush()

    # --- the client's frames -----------------------------------------------------------------------------------------

    def client_fields(self, number: int, block: FieldBlock, end: bool) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            self._client_trailers(stream, block, end)
            return
        if number <= self._last:
            if not self._client.was_reset(number):
                raise Http2Error("HEADERS on a closed stream", Code.STREAM_CLOSED)
            return
        if not number & 1:
            raise Http2Error("a client's stream has an even number")
        if number > self._promised:
            return
        self._last = number
        if len(self._streams) >= MAX_STREAMS:
            self._turn_away(number, end)
            return
        try:
            head = http2_head.request(block, self._options.paths)
            if end and head.length:
                raise PeerError("the body is shorter than Content-Length says")
        except PeerError as error:
            self._refuse(number, error, block, end)
            return
        self._begin(number, head, end)

    def _begin(self, number: int, head: http2_head.RequestHead, end: bool) -> None:
        request = Request(head.method, head.path, head.host, head.headers)
        judgement = self._judge(request)
        record = self._log.request(head, judgement, request.rewrite)
        self._actions.append(Emit(record))
        stream = self._stream(number, end)
        stream.head, stream.record, stream.grpc = head, record, head.grpc
        if judgement.verdict is not FORWARDED and judgement.verdict is not AUDIT:
            self._deny(stream, judgement.reason)
            return
        if self._server_done:
            self._answer(stream, 502, "the server has closed the connection")
            return
        if head.length is not None:
            stream.up.left = head.length
        stream.waiting = head.block if request.rewrite is None else rewritten(head.block, request.rewrite)
        self._waiting[number] = stream
        if not self._asked:
            self._asked = True
            self._actions.append(Connect())
        self._forward()

    def _stream(self, number: int, ended: bool) -> Stream:
        up = Half(number, ended=ended)
        down = Half(number, window=self._client.initial, open=True)
        stream = self._streams[number] = Stream(number, up, down)
        return stream

    def _client_trailers(self, stream: Stream, block: FieldBlock, end: bool) -> None:
        if stream.up.ended:
            raise Http2Error("HEADERS after the end of the stream", Code.STREAM_CLOSED)
        if stream.answered:
            stream.up.ended = end
            return
        try:
            if not end:
                raise PeerError("HEADERS stand in the middle of a request")
            http2_head.check_trailers(block)
            stream.up.count(0, end=True)
        except PeerError as error:
            stream.up.ended = end
            self._fail(stream, error.status, str(error))
            return
        self._up.finish(stream.up, block)

    def client_data(self, number: int, data: bytes, begin: int, end: int, flags: int, flow: int) -> None:
        stream = self._streams.get(number)
        if stream is None:
            self._stray_data(self._client, number, flow, self._last if number <= self._promised else MAX_STREAM)
            return
        half = stream.up
        if half.ended:
            raise Http2Error("DATA after the end of the stream", Code.STREAM_CLOSED)
        ended = bool(flags & END_STREAM)
        if stream.answered:
            self._up.discard(half, flow, end=ended)
            return
        if half.left >= 0:
            try:
                half.count(end - begin, end=ended)
            except PeerError as error:
                self._up.discard(half, flow, end=ended)
                self._fail(stream, error.status, str(error))
                return
        self._up.push(half, data, begin, end, flags, flow)

    def client_reset(self, number: int, code: int) -> None:
        self._client.budget.spend(RESET, "RST_STREAM")
        stream = self._streams.get(number)
        if stream is not None:
            self._abandon(stream, f"the client reset the stream ({code_name(code)})", code)
        elif number > self._last and number <= self._promised:
            raise Http2Error("RST_STREAM on a stream that was never opened")

    def client_window(self, number: int, increment: int) -> None:
        if number == 0:
            self._down.advance_all()
            return
        stream = self._streams.get(number)
        if stream is not None:
            self._down.widen(stream.down, increment)
        elif number > self._last and number <= self._promised:
            raise Http2Error("WINDOW_UPDATE on a stream that was never opened")

    def client_initial_window(self, difference: int) -> None:
        for stream in self._streams.values():
            self._down.widen(stream.down, difference)

    def client_goaway(self, code: int) -> None:
        """It will open no more streams; those that it has may end."""
        self._leaving = True
        if self._asked and not self._server_done:
            self._server.out.append(frames.goaway(0, code))

    def client_pong(self, payload: bytes) -> None:
        if self._parting and payload == _GOODBYE:
            self._leave(b"the proxy is stopping")

    # --- the server's frames -----------------------------------------------------------------------------------------

    def server_fields(self, number: int, block: FieldBlock, end: bool) -> None:
        stream = self._opened(number)
        if stream is None:
            return
        try:
            if stream.response is None:
                self._take_response(stream, block, end)
            elif not end:
                raise PeerError("HEADERS stand in the middle of the response")
            else:
                http2_head.check_trailers(block)
                stream.down.count(0, end=True)
                self._down.finish(stream.down, block)
        except PeerError as error:
            stream.down.ended = end
            self._fail(stream, 502, f"bad response: {error}")

    def _take_response(self, stream: Stream, block: FieldBlock, end: bool) -> None:
        head = http2_head.response(block)
        if head.status < 200:
            stream.interim += 1
            if end:
                raise PeerError(f"the stream ends with a {head.status}")
            if stream.interim > bounds.MAX_INTERIM:
                raise PeerError(f"more than {bounds.MAX_INTERIM} interim responses")
            self._client.send_fields(stream.id, block, end=False)
            return
        down = stream.down
        if stream.head_only or head.status in (204, 304):
            down.left = 0
        elif head.length is not None:
            down.left = head.length
            if end:
                down.count(0, end=True)
        stream.response = head
        self._client.send_fields(stream.id, block, end=end)
        if end:
            down.ended = down.sent = True
            self._down.sent.append(stream.id)

    def server_data(self, number: int, data: bytes, begin: int, end: int, flags: int, flow: int) -> None:
        stream = self._streams.get(number)
        if stream is None or not stream.opened:
            self._stray_data(self._server, number, flow, self._last)
            return
        half = stream.down
        if half.ended:
            raise Http2Error("DATA after the end of the stream", Code.STREAM_CLOSED)
        ended = bool(flags & END_STREAM)
        try:
            if stream.response is None:
                raise PeerError("DATA without a head")
            if half.left >= 0:
                half.count(end - begin, end=ended)
        except PeerError as error:
            self._down.discard(half, flow, end=ended)
            self._fail(stream, 502, f"bad response: {error}")
            return
        self._down.push(half, data, begin, end, flags, flow)

    def server_reset(self, number: int, code: int) -> None:
        stream = self._streams.get(number)
        if stream is None or not stream.opened:
            if number > self._last:
                raise Http2Error("RST_STREAM on a stream that was never opened")
            return
        stream.opened = False  # it knows the stream no more
        stream.up.open = False
        if stream.down.ended:  # it has answered, and wants no more of the request
            self._up.drop(stream.up)
            stream.reset = code
            self._down.sent.append(number)
            return
        self._tell(
            stream,
            stream.response.status if stream.response else 502,
            f"the server reset the stream ({code_name(code)})",
        )
        self._forget(stream, code)

    def server_window(self, number: int, increment: int) -> None:
        if number == 0:
            self._up.advance_all()
            return
        stream = self._streams.get(number)
        if stream is not None and stream.opened:
            self._up.widen(stream.up, increment)
        elif number > self._last:
            raise Http2Error("WINDOW_UPDATE on a stream that was never opened")

    def server_initial_window(self, difference: int) -> None:
        for stream in self._streams.values():
            if stream.opened:
                self._up.widen(stream.up, difference)

    def server_goaway(self, last: int, code: int) -> None:
        """Streams past its last were not processed and may be tried again elsewhere: the client is told so."""
        self._server_last = min(last, self._server_last)
        for stream in list(self._streams.values()):
            if stream.id > self._server_last and not stream.answered:
                self._tell(stream, 503, f"the server is going away ({code_name(code)})")
                self._forget(stream, Code.REFUSED_STREAM)
        self._promised = min(self._promised, self._server_last)
        self._client.out.append(frames.goaway(self._promised, code))
        if self._server_last < MAX_STREAM:
            self._leaving = True

    def forward_waiting(self) -> None:
        self._forward()

    def _opened(self, number: int) -> Stream | None:
        """The stream that the server speaks of; None when it may not know yet that it is over."""
        stream = self._streams.get(number)
        if stream is None or not stream.opened:
            if not self._server.was_reset(number):
                raise Http2Error("HEADERS on a stream that is not open", Code.STREAM_CLOSED)
            return None
        if stream.down.ended:
            raise Http2Error("HEADERS after the end of the stream", Code.STREAM_CLOSED)
        return stream

    # --- forwarding --------------------------------------------------------------------------------------------------

    def _forward(self) -> None:
        """Open at the server what waits for it, in order, as far as the server has said it goes."""
        server = self._server
        if not server.settled or self._server_done:
            return
        room = server.streams
        if room < MAX_STREAMS:
            room -= sum(stream.opened for stream in self._streams.values())
        for stream in list(self._waiting.values()):
            if room <= 0:
                return
            room -= 1
            del self._waiting[stream.id]
            self._open(stream)

    def _open(self, stream: Stream) -> None:
        block, up = stream.waiting, stream.up
        assert block is not None
        stream.waiting = None
        stream.opened = True
        whole = up.ended and not up.queue and up.trailers is None
        self._server.send_fields(stream.id, block, end=whole)
        up.open = True
        up.window = self._server.initial
        if whole:
            up.sent = True
            self._up.sent.append(stream.id)
        elif up.queue or up.ended:
            self._up.advance(up)

    @staticmethod
    def _stray_data(peer: Peer, number: int, flow: int, last: int) -> None:
        """DATA on a stream that is no more: what was on its way is thrown away, all else is a fault."""
        if number > last:
            raise Http2Error("DATA on a stream that was never opened")
        if last != MAX_STREAM and not peer.was_reset(number):
            raise Http2Error("DATA on a closed stream", Code.STREAM_CLOSED)
        peer.took(flow)

    # --- ends of streams ---------------------------------------------------------------------------------------------

    def _deny(self, stream: Stream, reason: str) -> None:
        shown = printable(reason)
        extra = ((b"x-l7proxy-denied", shown),) if self._options.deny_header and shown else ()
        self._speak(stream, 403, DENIED, extra)
        self._tell(stream, 403)

    def _refuse(self, number: int, error: PeerError, block: FieldBlock, end: bool) -> None:
        """A header block that is no request we could judge. The other streams go on."""
        self._client.budget.spend(REFUSED, str(error))
        stream = self._stream(number, end)
        stream.grpc = http2_head.is_grpc(block.fields)
        extra = ((b"location", error.location),) if isinstance(error, EscapedSlashError) else ()
        self._emit_malformed(error.status, str(error))
        self._speak(stream, error.status, sentence(str(error)), extra)

    def _turn_away(self, number: int, end: bool) -> None:
        self._client.budget.spend(REFUSED, "a stream too many")
        self._emit_malformed(503, f"more than {MAX_STREAMS} streams at a time")
        self._client.send_reset(number, Code.REFUSED_STREAM, ended=end)

    def _answer(self, stream: Stream, status: int, reason: str) -> None:
        self._speak(stream, status, sentence(reason))
        self._tell(stream, status, reason)

    def _speak(self, stream: Stream, status: int, text: bytes, extra: tuple[Header, ...] = ()) -> None:
        """Our answer in the place of the server's, of which nothing has been shown yet."""
        stream.answered = True
        self._waiting.pop(stream.id, None)
        self._up.drop(stream.up)
        if stream.grpc:
            self._client.send_fields(stream.id, trailers_only(status, text, extra), end=True)
        else:
            self._client.send_fields(stream.id, plain(status, text, extra), end=stream.head_only)
            if not stream.head_only:
                self._down.speak(stream.down, text)
                return
        stream.down.ended = stream.down.sent = True
        self._down.sent.append(stream.id)

    def _fail(self, stream: Stream, status: int, reason: str) -> None:
        """An allowed request that cannot be completed: answered by us, or cut where the server's answer broke off."""
        if stream.answered:
            return
        self._leave_server(stream, Code.CANCEL)
        if stream.response is None:
            self._answer(stream, status, reason)
        else:
            self._tell(stream, stream.response.status, reason)
            self._forget(stream, Code.INTERNAL_ERROR)

    def _abandon(self, stream: Stream, reason: str, code: int = Code.CANCEL) -> None:
        """The client gives up. 499, unless the server's status has been shown."""
        self._leave_server(stream, code)
        self._tell(stream, stream.response.status if stream.response else 499, reason)
        self._remove(stream)

    def _leave_server(self, stream: Stream, code: int) -> None:
        if stream.opened and not (stream.down.ended and stream.up.sent):
            self._server.send_reset(stream.id, code, ended=stream.down.ended)
        stream.opened = stream.up.open = False

    def _forget(self, stream: Stream, code: int) -> None:
        """End the stream towards the client by a reset."""
        self._client.send_reset(stream.id, code, ended=stream.up.ended)
        self._remove(stream)

    def _remove(self, stream: Stream) -> None:
        self._up.drop(stream.up)
        self._down.drop(stream.down)
        self._waiting.pop(stream.id, None)
        self._streams.pop(stream.id, None)

    def _flush_streams(self) -> None:
        """Tell of the answers that have gone out whole, and let go of the streams that are over on all sides."""
        ended, self._up.sent, self._down.sent = self._up.sent + self._down.sent, [], []
        for number in ended:
            stream = self._streams.get(number)
            if stream is None or not stream.down.sent:
                continue
            if stream.response is not None and not stream.answered:
                self._tell(stream, stream.response.status)
            if stream.answered and not stream.up.ended:
                self._forget(stream, Code.NO_ERROR)  # RFC 9113 8.1: the answer does not depend on the rest
            elif stream.reset is not None and not stream.up.ended:
                self._forget(stream, stream.reset)
            elif stream.answered or stream.up.sent or stream.reset is not None:
                self._remove(stream)

    # --- ends of connections -----------------------------------------------------------------------------------------

    def _lose_server(self, status: int, reason: str) -> None:
        """Answers that are whole still go out; all others fail, and the client must come again."""
        self._server_done = True
        self._server.stopped = True
        for stream in list(self._streams.values()):
            stream.opened = stream.up.open = False
            if stream.answered:
                continue
            if not stream.down.ended:
                self._fail(stream, status, reason)
            elif not stream.up.ended:
                stream.reset = Code.NO_ERROR
                self._down.sent.append(stream.id)
            else:
                stream.up.sent = True
                self._up.sent.append(stream.id)
        self._leave(b"the server is gone")

    def _leave(self, why: bytes) -> None:
        """No more streams than these."""
        self._parting = False
        self._leaving = True
        if self._promised > self._last:
            self._promised = self._last
            self._client.out.append(frames.goaway(self._last, Code.NO_ERROR, why))

    def _broken(self, error: Http2Error) -> None:
        """The client cannot be understood any more."""
        self._emit_malformed(error.status, str(error))
        self._tell_all(f"the client broke HTTP/2 ({error})")
        self._client.out.append(frames.goaway(self._last, error.code, printable(str(error))))
        self._close()

    def _tell_all(self, reason: str) -> None:
        for stream in self._streams.values():
            self._tell(stream, stream.response.status if stream.response else 499, reason)

    def _close(self) -> None:
        self._closed = True
        self._client.stopped = self._server.stopped = True

    # --- what goes out -----------------------------------------------------------------------------------------------

    def _flush(self) -> list[Action]:
        """All that this call has come to."""
        while self._up.sent or self._down.sent:
            self._flush_streams()
        if self._waiting:
            self._forward()
        if self._leaving and not self._streams:
            self._close()
        self._to_server()
        actions, self._actions = self._actions, []
        if self._client.out:
            actions.append(ToClient(self._client.take_out()))
        if self._closed:
            self._streams.clear()
            self._waiting.clear()
            actions.append(Close())
        else:
            self._regulate(actions)
        return actions

    def _to_server(self) -> None:
        if self._server.out and self._asked and not self._server_done:
            self._actions.append(ToServer(self._server.take_out()))

    def _regulate(self, actions: list[Action]) -> None:
        """Heads that wait for the server are the one thing that windows do not bound."""
        full = (
            bool(self._waiting) and sum(s.waiting.size for s in self._waiting.values() if s.waiting) > bounds.MAX_HELD
        )
        if full is not self._paused:
            self._paused = full
            actions.append(Pause(CLIENT) if full else Resume(CLIENT))

    def _tell(self, stream: Stream, status: int, reason: str = "") -> None:
        """The one HttpResponse of a stream."""
        if stream.told or stream.record is None:
            return
        stream.told = True
        self._client.budget.earn(FINISHED if not reason else 0)
        self._actions.append(Emit(self._log.response(stream.record, status, reason, stream.response)))

    def _emit_malformed(self, status: int, reason: str) -> None:
        self._actions.append(Emit(self._log.malformed(status, reason, HTTP2)))


class _FromClient:
    """What the client's frames mean to the gate (http2_peer.Owner)."""

    __slots__ = ("_gate", "got_data", "got_fields", "got_initial_window", "got_pong", "got_reset", "got_window")

    def __init__(self, gate: Http2Gate) -> None:
        self._gate = gate
        self.got_fields = gate.client_fields
        self.got_data = gate.client_data
        self.got_reset = gate.client_reset
        self.got_window = gate.client_window
        self.got_initial_window = gate.client_initial_window
        self.got_pong = gate.client_pong

    def ready(self) -> None:
        """It may begin."""

    def got_goaway(self, last: int, code: int) -> None:
        self._gate.client_goaway(code)


class _FromServer:
    __slots__ = ("got_data", "got_fields", "got_goaway", "got_initial_window", "got_reset", "got_window", "ready")

    def __init__(self, gate: Http2Gate) -> None:
        self.ready = gate.forward_waiting
        self.got_fields = gate.server_fields
        self.got_data = gate.server_data
        self.got_reset = gate.server_reset
        self.got_window = gate.server_window
        self.got_initial_window = gate.server_initial_window
        self.got_goaway = gate.server_goaway

    def got_pong(self, payload: bytes) -> None:
        """We never ask the server."""


def rewritten(block: FieldBlock, rewrite: Rewrite) -> FieldBlock:
    """The block with its headers changed; a secret among them is never indexed."""
    pseudo = [field for field in block.fields if field[0][:1] == b":"]
    hidden = {block.fields[place] for place in block.secret}
    hidden.update((edit.name.lower(), edit.value) for edit in rewrite.edits if edit.secret)
    fields = [*pseudo, *edited(block.fields[len(pseudo) :], rewrite.edits)]
    return FieldBlock(fields, block.size, frozenset(place for place, field in enumerate(fields) if field in hidden))
