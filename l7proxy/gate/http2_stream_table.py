"""All streams of one client's HTTP/2 connection: the effect of each frame on its request or response, and stream ends.

The laws are those of http2.py, to which this module belongs; it knows nothing of sockets, EOF or timeouts.
Its output collects in `actions` and in the `out` of both peers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from l7proxy.errors import PeerError
from l7proxy.gate import options as bounds
from l7proxy.gate.access_log import HTTP2, AccessLog
from l7proxy.gate.actions import Action, Connect, Emit
from l7proxy.gate.http2_budget import DENIED, FINISHED, FRAME, REFUSED, RESET
from l7proxy.gate.http2_frame_handlers import FromClient, FromServer
from l7proxy.gate.http2_peer import Peer
from l7proxy.gate.http2_pending import PendingStreams
from l7proxy.gate.http2_relay import Relay, StreamHalf
from l7proxy.gate.http2_replies import plain, trailers_only
from l7proxy.gate.http2_stream import ANSWERED, AT_SERVER, DETACHED, Event, Stream
from l7proxy.gate.options import HttpOptions
from l7proxy.gate.replies import DENIED as DENIED_TEXT
from l7proxy.gate.replies import printable, sentence
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.model.verdict import Verdict
from l7proxy.policy.combine import revoked
from l7proxy.wire import http2_frames as frames
from l7proxy.wire import http2_head, trace_id
from l7proxy.wire.head import Header
from l7proxy.wire.http2_fields import FieldBlock
from l7proxy.wire.http2_frames import END_STREAM, MAX_STREAM, PREFACE, Code, Http2Error, Setting, code_name
from l7proxy.wire.path import EscapedSlashError

MAX_STREAMS: Final = 100
"""Open streams per client (the minimum that RFC 9113 6.5.2 recommends). A stream counts until its end has been sent to
the client, so a burst of requests in one read cannot exceed this either."""

FORWARDED, AUDIT = Verdict.FORWARDED, Verdict.AUDIT  # every other verdict refuses
_GOODBYE: Final = b"l7proxy!"
"""Payload of the PING after GOAWAY: its ACK shows that the client has received the GOAWAY."""


class StreamTable:
    """`leaving`: the connection ends with its last stream. `parting`: waits for the ACK of `_GOODBYE`, then leaves."""

    __slots__ = (
        "_judge",
        "_offered",
        "_options",
        "_paths",
        "_server_last",
        "_waiting",
        "actions",
        "asked",
        "client",
        "down",
        "last",
        "leaving",
        "log",
        "parting",
        "promised",
        "server",
        "server_done",
        "streams",
        "up",
    )

    def __init__(
        self,
        judge: Callable[[Request], PolicyVerdict],
        log: AccessLog,
        ticks_ns: Callable[[], int],
        options: HttpOptions,
    ) -> None:
        self._judge = judge
        self._options = options
        self.log = log
        towards_client = [(Setting.MAX_CONCURRENT_STREAMS, MAX_STREAMS), (Setting.NO_RFC7540_PRIORITIES, 1)]
        self.client = Peer(self._from_client(), ticks_ns, towards_client, b"")
        self.server = Peer(self._from_server(), ticks_ns, [(Setting.ENABLE_PUSH, 0)], PREFACE)
        self.up = Relay(self.client, self.server)
        self.down = Relay(self.server, self.client)
        self.streams: dict[int, Stream] = {}
        self.actions: list[Action] = []
        self._paths: http2_head.Paths = {}
        self._waiting = PendingStreams()
        self._offered = MAX_STREAMS
        self.last = 0  # the client's last stream
        self.promised = MAX_STREAM  # later streams are ignored (GOAWAY)
        self._server_last = MAX_STREAM
        self.asked = False  # Connect has been requested
        self.server_done = False
        self.leaving = False
        self.parting = False

    def _from_client(self) -> FromClient:
        return FromClient(
            got_fields=self.client_fields,
            got_data=self.client_data,
            got_reset=self.client_reset,
            got_window=self.client_window,
            got_initial_window=self.client_initial_window,
            got_pong=self.client_pong,
            leaves=self.client_goaway,
        )

    def _from_server(self) -> FromServer:
        return FromServer(
            got_settings=self.server_settings,
            got_fields=self.server_fields,
            got_data=self.server_data,
            got_reset=self.server_reset,
            got_window=self.server_window,
            got_initial_window=self.server_initial_window,
            got_goaway=self.server_goaway,
        )

    @property
    def full(self) -> bool:
        """No more heads can be buffered until the server is ready. Afterwards the client is never paused: its next
        frames may be those that make room."""
        return not self.server.settled and self._waiting.heads > bounds.MAX_HELD

    def end(self) -> None:
        """Stop reading, and drop all streams."""
        self.client.stop()
        self.server.stop()
        self.streams.clear()
        self._waiting.clear()

    # --- the client's frames -----------------------------------------------------------------------------------------

    def client_fields(self, number: int, block: FieldBlock, end: bool) -> None:
        stream = self.streams.get(number)
        if stream is not None:
            self._client_trailers(stream, block, end)
            return
        if number <= self.last:
            if not self.client.was_reset(number):
                raise Http2Error("HEADERS on a closed stream", Code.STREAM_CLOSED)
            self.client.budget.spend(FRAME, "HEADERS on a stream that was reset")
            return
        if not number & 1:
            raise Http2Error("a client's stream has an even number")
        if number > self.promised:
            self.client.budget.spend(FRAME, "HEADERS after GOAWAY")
            return
        self.last = number
        if len(self.streams) >= MAX_STREAMS:
            self._turn_away(number, end)
            return
        try:
            head = http2_head.request(block, self._options.paths, self._paths)
            if end and head.length:
                raise PeerError("the body is shorter than Content-Length")
        except PeerError as error:
            self._refuse(number, error, block, end)
            return
        self._begin(number, head, head.instead or block, end)

    def _begin(self, number: int, head: http2_head.RequestHead, block: FieldBlock, end: bool) -> None:
        request = Request(head.method, head.path, head.host, head.headers)
        policy_verdict = self._judge(request)
        record = self.log.request(request, policy_verdict, HTTP2, trace_id.of_headers(head.headers))
        self.actions.append(Emit(record))
        stream = self._stream(number, end)
        stream.head, stream.record, stream.grpc = head, record, head.grpc
        if policy_verdict.verdict is not FORWARDED and policy_verdict.verdict is not AUDIT:
            self._deny(stream, policy_verdict.reason)
            self.client.budget.spend(DENIED, "a denied request")
            return
        if self.server_done:
            self._answer(stream, 502, "the server has closed the connection")
            return
        if head.length is not None:
            stream.up.left = head.length
        stream.move(Event.ALLOW)
        stream.judged = request.judged()
        stream.waiting = block if request.rewrite is None else http2_head.rewritten(block, request.rewrite)
        self._waiting.add(stream)
        if not self.asked:
            self.asked = True
            self.actions.append(Connect())
        self.forward()

    def _stream(self, number: int, ended: bool) -> Stream:
        up = StreamHalf(number, ended=ended)
        down = StreamHalf(number, window=self.client.initial, open=True)
        stream = self.streams[number] = Stream(number, up, down)
        return stream

    def _client_trailers(self, stream: Stream, block: FieldBlock, end: bool) -> None:
        if stream.up.ended:
            raise Http2Error("HEADERS after the end of the stream", Code.STREAM_CLOSED)
        if stream.state is ANSWERED:
            stream.up.ended = end
            return
        try:
            if not end:
                raise PeerError("HEADERS within a request")
            http2_head.check_trailers(block)
            http2_head.check_repeats(block, stream.judged)
            stream.up.count(0, end=True)
        except PeerError as error:
            stream.up.ended = end
            self._fail_by_client(stream, error)
            return
        self.up.finish(stream.up, block)

    def client_data(self, number: int, data: bytes, begin: int, end: int, flags: int, flow: int) -> None:
        stream = self.streams.get(number)
        if stream is None:
            self.client.took_stray(number, flow, self.last if number <= self.promised else MAX_STREAM)
            return
        half = stream.up
        if half.ended:
            raise Http2Error("DATA after the end of the stream", Code.STREAM_CLOSED)
        ended = bool(flags & END_STREAM)
        if stream.state is ANSWERED:
            self.up.discard(half, flow, end=ended)
            return
        if half.left >= 0:
            try:
                half.count(end - begin, end=ended)
            except PeerError as error:
                self.up.discard(half, flow, end=ended)
                self._fail_by_client(stream, error)
                return
        self.up.push(half, data, begin, end, flags, flow)

    def client_reset(self, number: int, code: int) -> None:
        stream = self.streams.get(number)
        if stream is not None:
            if stream.state is not ANSWERED:  # else the server has done no work for it
                self.client.budget.spend(RESET, "RST_STREAM")
            self.abandon(stream, f"the client reset the stream ({code_name(code)})", code)
        elif number > self.last and number <= self.promised:
            raise Http2Error("RST_STREAM on a stream that was never opened")

    def client_window(self, number: int, increment: int) -> None:
        if number == 0:
            self.down.advance_all()
            return
        stream = self.streams.get(number)
        if stream is not None:
            self.down.widen(stream.down, increment)
        elif number > self.last and number <= self.promised:
            raise Http2Error("WINDOW_UPDATE on a stream that was never opened")

    def client_initial_window(self, difference: int) -> None:
        for stream in self.streams.values():
            self.down.widen(stream.down, difference)

    def client_goaway(self, code: int) -> None:
        """The client will open no more streams; open ones may finish."""
        self.leaving = True
        if self.asked and not self.server_done:
            self.server.out.append(frames.goaway(0, code))

    def client_pong(self, payload: bytes) -> None:
        if self.parting and payload == _GOODBYE:
            self.leave(b"goodbye")

    # --- the server's frames -----------------------------------------------------------------------------------------

    def server_fields(self, number: int, block: FieldBlock, end: bool) -> None:
        stream = self._opened(number)
        if stream is None:
            return
        try:
            if stream.response is None:
                self._take_response(stream, block, end)
            elif not end:
                raise PeerError("HEADERS within the response")
            else:
                http2_head.check_trailers(block)
                stream.down.count(0, end=True)
                self.down.finish(stream.down, block)
        except PeerError as error:
            stream.down.ended = end
            self.fail(stream, 502, f"invalid response: {error}")

    def _take_response(self, stream: Stream, block: FieldBlock, end: bool) -> None:
        head = http2_head.response(block)
        if head.status < 200:
            stream.interim += 1
            if end:
                raise PeerError(f"the stream ends with a {head.status}")
            if stream.interim > bounds.MAX_INTERIM:
                raise PeerError(f"more than {bounds.MAX_INTERIM} interim responses")
            self.client.send_fields(stream.id, block, end=False)
            return
        down = stream.down
        if stream.head_only or head.status in (204, 304):
            down.left = 0
        elif head.length is not None:
            down.left = head.length
            if end:
                down.count(0, end=True)
        stream.response = head
        self.client.send_fields(stream.id, block, end=end)
        if end:
            down.ended = down.sent = True
            self.down.sent.append(stream.id)

    def server_data(self, number: int, data: bytes, begin: int, end: int, flags: int, flow: int) -> None:
        stream = self.streams.get(number)
        if stream is None or stream.state is not AT_SERVER:
            self.server.took_stray(number, flow, self.last)
            return
        half = stream.down
        if half.ended:
            raise Http2Error("DATA after the end of the stream", Code.STREAM_CLOSED)
        ended = bool(flags & END_STREAM)
        try:
            if stream.response is None:
                raise PeerError("DATA before HEADERS")
            if half.left >= 0:
                half.count(end - begin, end=ended)
        except PeerError as error:
            self.down.discard(half, flow, end=ended)
            self.fail(stream, 502, f"invalid response: {error}")
            return
        self.down.push(half, data, begin, end, flags, flow)

    def server_reset(self, number: int, code: int) -> None:
        stream = self.streams.get(number)
        if stream is None or stream.state is not AT_SERVER:
            if number > self.last:
                raise Http2Error("RST_STREAM on a stream that was never opened")
            return
        stream.detach()
        if stream.down.ended:  # it has responded, and needs no more of the request
            self.up.drop(stream.up)
            stream.code = code
            self.down.sent.append(number)
            return
        self._tell(
            stream,
            stream.response.status if stream.response else 502,
            f"the server reset the stream ({code_name(code)})",
        )
        self._forget(stream, code)

    def server_window(self, number: int, increment: int) -> None:
        if number == 0:
            self.up.advance_all()
            return
        stream = self.streams.get(number)
        if stream is not None and stream.state is AT_SERVER:
            self.up.widen(stream.up, increment)
        elif number > self.last:
            raise Http2Error("WINDOW_UPDATE on a stream that was never opened")

    def server_initial_window(self, difference: int) -> None:
        for stream in self.streams.values():
            if stream.state is AT_SERVER:
                self.up.widen(stream.up, difference)

    def server_settings(self) -> None:
        """The server is ready, or has changed its settings. Give the client its limit of streams: more would wait."""
        most = min(self.server.streams, MAX_STREAMS)
        if most != self._offered:
            self._offered = most
            self.client.out.append(frames.settings([(Setting.MAX_CONCURRENT_STREAMS, most)]))
        self.forward()

    def server_goaway(self, last: int, code: int) -> None:
        """Reset streams above `last` with REFUSED_STREAM: they were not processed, so the client may retry them."""
        self._server_last = min(last, self._server_last)
        for stream in list(self.streams.values()):
            if stream.id > self._server_last and stream.state is not ANSWERED:
                self._tell(stream, 503, f"the server is going away ({code_name(code)})")
                self._forget(stream, Code.REFUSED_STREAM)
        self.promised = min(self.promised, self._server_last)
        self.client.out.append(frames.goaway(self.promised, code))
        if self._server_last < MAX_STREAM:
            self.leaving = True

    def _opened(self, number: int) -> Stream | None:
        """The open stream of a server's frame; None if we reset it and the server may not know yet."""
        stream = self.streams.get(number)
        if stream is None or stream.state is not AT_SERVER:
            if not self.server.was_reset(number):
                raise Http2Error("HEADERS on a stream that is not open", Code.STREAM_CLOSED)
            return None
        if stream.down.ended:
            raise Http2Error("HEADERS after the end of the stream", Code.STREAM_CLOSED)
        return stream

    # --- forwarding --------------------------------------------------------------------------------------------------

    def forward(self) -> None:
        """Open pending streams at the server, in order, up to the server's limit."""
        if not self.server.settled or self.server_done:
            return
        for stream in self._waiting.first(self._room()):
            self._open(stream)

    def _room(self) -> int:
        """How many more streams the server accepts now."""
        most = self.server.streams
        if most < MAX_STREAMS:
            most -= sum(stream.at_server for stream in self.streams.values())
        return most

    def _open(self, stream: Stream) -> None:
        block, up = stream.waiting, stream.up
        assert block is not None
        stream.waiting = None
        stream.move(Event.FORWARD)
        whole = up.ended and not up.queue and up.trailers is None
        self.server.send_fields(stream.id, block, end=whole)
        up.open = True
        up.window = self.server.initial
        if whole:
            up.sent = True
            self.up.sent.append(stream.id)
        elif up.queue or up.ended:
            self.up.advance(up)

    # --- ends of streams ---------------------------------------------------------------------------------------------

    def _deny(self, stream: Stream, reason: str) -> None:
        shown = printable(reason)
        extra = ((b"x-l7proxy-denied", shown),) if self._options.deny_header and shown else ()
        self._speak(stream, 403, DENIED_TEXT, extra)
        self._tell(stream, 403)

    def judge_again(self) -> None:
        """Policy has changed: end the streams that are refused now, at the server with a reset, at the client with 403
        or, if the server's response has begun, with a reset."""
        for stream in list(self.streams.values()):
            head = stream.head
            if head is None or stream.state is ANSWERED:
                continue
            policy_verdict = self._judge(Request(head.method, head.path, head.host, head.headers))
            if policy_verdict.verdict is not FORWARDED and policy_verdict.verdict is not AUDIT:
                self._revoke(stream, revoked(policy_verdict))

    def _revoke(self, stream: Stream, policy_verdict: PolicyVerdict) -> None:
        self._leave_server(stream, Code.CANCEL)
        shown = stream.response
        self._tell(stream, 403 if shown is None else shown.status, policy_verdict.reason)
        if shown is None:
            self._deny(stream, policy_verdict.reason)
        else:
            self._forget(stream, Code.CANCEL)
        self.actions.append(Emit(self.log.connection(policy_verdict)))

    def _refuse(self, number: int, error: PeerError, block: FieldBlock, end: bool) -> None:
        """Refuse a header block that is not a valid request. The other streams continue."""
        self.client.budget.spend(REFUSED, str(error))
        stream = self._stream(number, end)
        stream.grpc = http2_head.is_grpc(block.fields)
        extra = ((b"location", error.location),) if isinstance(error, EscapedSlashError) else ()
        self.emit_malformed(error.status, str(error))
        self._speak(stream, error.status, sentence(str(error)), extra)

    def _turn_away(self, number: int, end: bool) -> None:
        self.client.budget.spend(REFUSED, "too many streams")
        self.emit_malformed(503, f"more than {MAX_STREAMS} concurrent streams")
        self.client.send_reset(number, Code.REFUSED_STREAM, ended=end)

    def _answer(self, stream: Stream, status: int, reason: str) -> None:
        self._speak(stream, status, sentence(reason))
        self._tell(stream, status, reason)

    def _speak(self, stream: Stream, status: int, text: bytes, extra: tuple[Header, ...] = ()) -> None:
        """Send our own response; nothing of the server's has been sent yet."""
        stream.move(Event.ANSWER)
        self._waiting.drop(stream)
        self.up.drop(stream.up)
        if stream.grpc:
            self.client.send_fields(stream.id, trailers_only(status, text, extra), end=True)
        else:
            self.client.send_fields(stream.id, plain(status, text, extra), end=stream.head_only)
            if not stream.head_only:
                self.down.speak(stream.down, text)
                return
        stream.down.ended = stream.down.sent = True
        self.down.sent.append(stream.id)

    def fail(self, stream: Stream, status: int, reason: str) -> None:
        """An allowed request cannot be completed: send an error, or reset if the server's response has begun."""
        if stream.state is ANSWERED:
            return
        self._leave_server(stream, Code.CANCEL)
        if stream.response is None:
            self._answer(stream, status, reason)
        else:
            self._tell(stream, stream.response.status, reason)
            self._forget(stream, Code.INTERNAL_ERROR)

    def _fail_by_client(self, stream: Stream, error: PeerError) -> None:
        """The client makes us cancel a request at the server: this costs as much as a cancel (CVE-2025-8671)."""
        self.client.budget.spend(RESET, str(error))
        self.fail(stream, error.status, str(error))

    def abandon(self, stream: Stream, reason: str, code: int = Code.CANCEL) -> None:
        """The client gives up: 499, unless the server's status has already been sent to it."""
        self._leave_server(stream, code)
        self._tell(stream, stream.response.status if stream.response else 499, reason)
        self._remove(stream)

    def _leave_server(self, stream: Stream, code: int) -> None:
        if stream.at_server:
            self.server.send_reset(stream.id, code, ended=stream.down.ended)
        if stream.state is not ANSWERED:
            stream.detach()

    def _forget(self, stream: Stream, code: int) -> None:
        """Reset the stream at the client and remove it."""
        self.client.send_reset(stream.id, code, ended=stream.up.ended)
        self._remove(stream)

    def _remove(self, stream: Stream) -> None:
        self.up.drop(stream.up)
        self.down.drop(stream.down)
        self._waiting.drop(stream)
        self.streams.pop(stream.id, None)

    def settle(self) -> None:
        """Record the responses that have been sent completely, remove the streams that have ended on both sides, and
        refuse pending streams above MAX_WAITING."""
        up, down = self.up, self.down
        if self._waiting:
            self.forward()
        while up.sent or down.sent:
            ended, up.sent, down.sent = up.sent + down.sent, [], []
            self._let_go(ended)
            if self._waiting:
                self.forward()
        if self._waiting and self.server.settled:
            for stream in self._waiting.excess():
                self._tell(stream, 503, "the server accepts no more streams for now")
                self._forget(stream, Code.REFUSED_STREAM)

    def _let_go(self, ended: list[int]) -> None:
        for number in ended:
            stream = self.streams.get(number)
            if stream is None or not stream.down.sent:
                continue
            if stream.response is not None and stream.state is not ANSWERED:
                self._tell(stream, stream.response.status)
            left = stream.state is ANSWERED or stream.state is DETACHED
            if left and not stream.up.ended:
                self._forget(stream, stream.code)  # RFC 9113 8.1: the response does not depend on the rest
            elif left or stream.up.sent:
                self._remove(stream)

    # --- the end of the connection -----------------------------------------------------------------------------------

    def part(self, why: bytes) -> None:
        """Send GOAWAY; once the client has received it, accept no more streams (RFC 9113 6.8)."""
        self.parting = True
        self.client.out.append(frames.goaway(self.promised, Code.NO_ERROR, why))
        self.client.out.append(frames.frame(frames.PING, 0, 0, _GOODBYE))

    def lose_server(self, status: int, reason: str) -> None:
        """Complete responses are still sent; all others fail, and the client must reconnect."""
        self.server_done = True
        self.server.stopped = True
        for stream in list(self.streams.values()):
            if stream.state is ANSWERED:
                continue
            stream.detach()
            if not stream.down.ended:
                self.fail(stream, status, reason)
            else:
                self.down.sent.append(stream.id)
        self.leave(b"the server is gone")

    def leave(self, why: bytes) -> None:
        """Accept no more streams; the connection ends with the last open one."""
        self.parting = False
        self.leaving = True
        if self.promised > self.last:
            self.promised = self.last
            self.client.out.append(frames.goaway(self.last, Code.NO_ERROR, why))

    def tell_all(self, reason: str) -> None:
        for stream in self.streams.values():
            self._tell(stream, stream.response.status if stream.response else 499, reason)

    # --- records -----------------------------------------------------------------------------------------------------

    def _tell(self, stream: Stream, status: int, reason: str = "") -> None:
        """Emit the stream's only HttpResponse record."""
        record, stream.record = stream.record, None
        if record is None:
            return
        if stream.response is not None and not reason:
            self.client.budget.earn(FINISHED)
        self.actions.append(Emit(self.log.response(record, status, reason, stream.response)))

    def emit_malformed(self, status: int, reason: str) -> None:
        self.actions.append(Emit(self.log.malformed(status, reason, HTTP2)))
