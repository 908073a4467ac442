"""Judges HTTP/2: one client connection, at most one server connection, every stream on its own. Bytes in, actions out.

Laws (property-tested over any bytes, splits and ends):
 1. A request is judged when its header block is complete, and again when policy changes as long as it is under way.
 2. Nothing of a request that is not allowed reaches the server, and what is forwarded is what was judged. Not one byte
    of a request goes to a server that has not said that it speaks HTTP/2 (its SETTINGS): another might take a body
    for requests.
 3. Each HttpRequest record is followed by exactly one HttpResponse record: the server's final status, or ours, as in
    HTTP/1 (http1.py). What cannot be judged leaves one Malformed record instead.
 4. What the client may make us hold is bounded: windows (http2_relay), MAX_STREAMS, MAX_HELD bytes of heads, and a
    budget for whatever else it sends (http2_budget).
The preface has been read when this gate begins (pick.py). Here are the ends of the connection; streams have
http2_exchanges.py to themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from l7proxy.gate.access_log import AccessLog
from l7proxy.gate.actions import Action, Close, HalfClose, Pause, Resume, Side, ToClient, ToServer
from l7proxy.gate.clock import Clock
from l7proxy.gate.http2_stream_table import StreamTable
from l7proxy.gate.options import HttpOptions
from l7proxy.gate.replies import printable
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction
from l7proxy.wire import http2_frames as frames
from l7proxy.wire.http2_frames import Code, Http2Error

CLIENT, SERVER = Side.CLIENT, Side.SERVER


STREAM: Final = 2048
"""Bytes that an open stream takes, beside what is kept of its DATA: its head, its record, its windows."""


class Http2Gate:
    """The gate of one client connection; see pick.Gate for how a session talks to it."""

    __slots__ = ("_client_done", "_closed", "_connected", "_of", "_paused")

    def __init__(
        self,
        judge: Callable[[Request], PolicyVerdict],
        conn: Conn,
        clock: Clock,
        options: HttpOptions,
        *,
        direction: Direction = Direction.INGRESS,
    ) -> None:
        """`direction` is what Malformed records carry: there, no rule has decided."""
        self._of = StreamTable(judge, AccessLog(conn, clock.now_ns, options, direction), clock.ticks_ns, options)
        self._connected = False
        self._client_done = False
        self._paused = False
        self._closed = False

    def must_read(self, side: Side) -> bool:
        """Always (RFC 9113 section 5.2.2)."""
        return True

    @property
    def waiting_for(self) -> str:
        """See actions.Gate."""
        if self._closed:
            return "closed"
        of, client = self._of, self._of.client
        if client.in_block or not client.settled:
            return "head"
        if of.streams:
            return "transfer" if self._connected or not of.asked else "connect"
        if of.parting:
            return "transfer"  # nothing is, but the connection is not idle either
        return "head" if client.in_frame else "idle"

    @property
    def held(self) -> int:
        """See pick.Gate. A stream that is open counts, too."""
        of = self._of
        return of.client.held + of.server.held + STREAM * len(of.streams) if not self._closed else 0

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
            self._of.client.receive(data)
        except Http2Error as error:
            self._broken(error)
        return self._flush()

    def from_server(self, data: bytes) -> list[Action]:
        of = self._of
        if self._closed or of.server_done:
            return []
        self._connected = True
        try:
            of.server.receive(data)
        except Http2Error as error:
            why = f"invalid response: {error}" if of.server.settled else f"the server does not speak HTTP/2: {error}"
            of.server.out.append(frames.goaway(0, error.code))
            self._to_server()
            of.actions.append(HalfClose(SERVER))
            of.lose_server(502, why)
        return self._flush()

    def spliced(self, source: Side, count: int) -> list[Action]:
        """It is never offered: frames of many streams share the connection."""
        return []

    def client_eof(self) -> list[Action]:
        """Answers that need nothing more of the client still go out."""
        if self._closed or self._client_done:
            return []
        self._client_done = self._of.leaving = True
        for stream in list(self._of.streams.values()):
            if not stream.up.ended:
                self._of.abandon(stream, "the client closed the connection before the request was complete")
        return self._flush()

    def server_eof(self) -> list[Action]:
        of = self._of
        if self._closed or of.server_done:
            return []
        why = "before the response was complete" if of.server.settled else "before it sent SETTINGS"
        of.lose_server(502, f"the server closed the connection {why}")
        return self._flush()

    def client_lost(self, reason: str = "the client closed the connection") -> list[Action]:
        """The session ends for a reason of its own; the client hears nothing more."""
        if self._closed:
            return []
        if self._of.client.in_block:
            self._of.emit_malformed(400, f"{reason} before the request head was complete")
        self._of.tell_all(f"{reason} before the response was complete")
        self._closed = True
        return self._flush()

    def upstream_failed(self, reason: str) -> list[Action]:
        if self._closed or self._of.server_done:
            return []
        self._of.lose_server(502 if self._connected else 503, f"upstream: {reason}")
        return self._flush()

    def identified(self, conn: Conn) -> None:
        self._of.log.conn = conn

    def policy_changed(self) -> list[Action]:
        """So that what waits for the server, or runs, ends when it is refused now. Streams to come are judged by it."""
        if self._closed:
            return []
        self._of.judge_again()
        return self._flush()

    def draining(self) -> list[Action]:
        """Clients are told before streams are refused, so that none is lost on its way."""
        of = self._of
        if self._closed or of.leaving or of.parting:
            return []
        of.part(b"the proxy is shutting down")
        return self._flush()

    def timed_out(self, which: str) -> list[Action]:
        of = self._of
        if self._closed or which != self.waiting_for:
            return []  # a timer of the past
        if which == "head":
            self._broken(Http2Error("timed out waiting for the request head", Code.ENHANCE_YOUR_CALM, status=408))
            return self._flush()
        for stream in list(of.streams.values()):
            of.fail(stream, 504 if stream.up.ended else 408, f"{which} timeout")
        of.leave(b"timed out")
        of.settle()
        self._closed = True
        return self._flush()

    # --- what comes of it --------------------------------------------------------------------------------------------

    def _broken(self, error: Http2Error) -> None:
        """The client cannot be understood, or borne, any more."""
        of = self._of
        of.emit_malformed(error.status, str(error))
        of.tell_all(f"HTTP/2 error of the client ({error})")
        of.client.out.append(frames.goaway(of.last, error.code, printable(str(error))))
        self._closed = True

    def _flush(self) -> list[Action]:
        """All that this call has come to."""
        of = self._of
        if not self._closed:
            of.settle()
            self._closed = of.leaving and not of.streams
        self._to_server()
        actions, of.actions = of.actions, []
        if of.client.out:
            actions.append(ToClient(of.client.take_out()))
        if self._closed:
            of.end()
            actions.append(Close())
            return actions
        full = of.full
        if full is not self._paused:
            self._paused = full
            actions.append(Pause(CLIENT) if full else Resume(CLIENT))
        return actions

    def _to_server(self) -> None:
        of = self._of
        if of.server.out and of.asked and not of.server_done:
            of.actions.append(ToServer(of.server.take_out()))
