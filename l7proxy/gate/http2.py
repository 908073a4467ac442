"""Enforces policy on HTTP/2: one client connection, at most one upstream connection, each stream on its own.

Laws (property-tested over any bytes, splits and ends):
 1. A request is evaluated when its header block is complete, and again when policy changes while it is in progress.
 2. No byte of a request that is not allowed reaches the server; what is forwarded is what was evaluated. No byte of any
    request goes to a server before its SETTINGS have arrived: a server that does not speak HTTP/2 might read a body as
    requests.
 3. Each HttpRequest record is followed by exactly one HttpResponse record: the server's final status, or ours, as in
    HTTP/1 (http1.py). An invalid request leaves one Malformed record instead.
 4. What a client can make us buffer is bounded: by windows (http2_relay), MAX_STREAMS, MAX_HELD bytes of heads, and a
    budget for all other frames (http2_budget).
The preface has been read before this gate starts (detect.py). This module handles the connection's events;
http2_stream_table.py handles the streams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from l7proxy.gate.access_log import AccessLog
from l7proxy.gate.actions import Action, Close, HalfClose, Pause, Phase, Resume, Side, ToClient, ToServer
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
"""Bytes of memory of an open stream besides its buffered DATA: head, record, windows."""


class Http2Gate:
    """The gate of one HTTP/2 client connection; see actions.Gate for its methods."""

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
        """`direction` is that of Malformed records, which no rule has decided."""
        self._of = StreamTable(judge, AccessLog(conn, clock.now_ns, options, direction), clock.ticks_ns, options)
        self._connected = False
        self._client_done = False
        self._paused = False
        self._closed = False

    def must_read(self, side: Side) -> bool:
        """Always true (RFC 9113 5.2.2)."""
        return True

    @property
    def waiting_for(self) -> Phase:
        """See actions.Gate."""
        if self._closed:
            return Phase.CLOSED
        of, client = self._of, self._of.client
        if client.in_block or not client.settled:
            return Phase.HEAD
        if of.streams:
            return Phase.TRANSFER if self._connected or not of.asked else Phase.CONNECT
        if of.parting:
            return Phase.TRANSFER  # no stream is open, but the connection is not idle either
        return Phase.HEAD if client.in_frame else Phase.IDLE

    @property
    def held(self) -> int:
        """See actions.Gate. Includes STREAM for each open stream."""
        of = self._of
        return of.client.held + of.server.held + STREAM * len(of.streams) if not self._closed else 0

    def started(self) -> list[Action]:
        """Send our SETTINGS. The upstream connection is opened only for an allowed request."""
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
        """Never called: no splice is offered, since the streams share the connection."""
        return []

    def client_eof(self) -> list[Action]:
        """Responses that need nothing more from the client are still sent."""
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
        """The session ends for a reason of its own; no more responses are sent."""
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
        """Evaluate open streams again, also those waiting for the server; end those now refused."""
        if self._closed:
            return []
        self._of.judge_again()
        return self._flush()

    def draining(self) -> list[Action]:
        """Send GOAWAY first and refuse streams later, so that no request in transit is lost."""
        of = self._of
        if self._closed or of.leaving or of.parting:
            return []
        of.part(b"the proxy is shutting down")
        return self._flush()

    def timed_out(self, phase: Phase) -> list[Action]:
        of = self._of
        if self._closed or phase is not self.waiting_for:
            return []  # a stale timer
        if phase is Phase.HEAD:
            self._broken(Http2Error("timed out waiting for the request head", Code.ENHANCE_YOUR_CALM, status=408))
            return self._flush()
        for stream in list(of.streams.values()):
            of.fail(stream, 504 if stream.up.ended else 408, f"{phase.name.lower()} timeout")
        of.leave(b"timed out")
        of.settle()
        self._closed = True
        return self._flush()

    # --- output ------------------------------------------------------------------------------------------------------

    def _broken(self, error: Http2Error) -> None:
        """End the connection: the client broke the protocol or exceeded a limit."""
        of = self._of
        of.emit_malformed(error.status, str(error))
        of.tell_all(f"HTTP/2 error of the client ({error})")
        of.client.out.append(frames.goaway(of.last, error.code, printable(str(error))))
        self._closed = True

    def _flush(self) -> list[Action]:
        """The actions that result from the current call."""
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
