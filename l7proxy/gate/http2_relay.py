"""Relays DATA from one HTTP/2 peer to the other, with end-to-end flow control.

Laws: a peer gets new window only for what the other side has taken, so we never buffer more than the windows we gave
(http2_peer.STREAM_WINDOW, CONNECTION_WINDOW). A message is sent in order, trailers last, with END_STREAM once.
The fast path: a frame that can be sent at once is sent unchanged, header included, since a stream has the same ID on
both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from l7proxy.errors import PeerError
from l7proxy.gate.http2_budget import DELIVERED, REFRESH
from l7proxy.gate.http2_peer import STREAM_WINDOW, Peer
from l7proxy.wire import http2_frames as frames
from l7proxy.wire.http2_fields import FieldBlock
from l7proxy.wire.http2_frames import DATA, END_STREAM, HEAD_SIZE, MAX_FRAME, MAX_WINDOW, Code, Http2Error

UNSAID: Final = -1


@dataclass(slots=True)
class StreamHalf:
    """One message of a stream, in bytes: `window` that its receiver allows, `allowed` that its sender may still send,
    `left` to come by its Content-Length. `open`: the stream is open at the receiver. `ended`: all has been received;
    `sent`: all has been sent."""

    stream: int
    window: int = 0
    open: bool = False
    ended: bool = False
    sent: bool = False
    left: int = UNSAID
    allowed: int = STREAM_WINDOW
    owed: int = 0
    queue: bytearray = field(default_factory=bytearray)
    trailers: FieldBlock | None = None

    def count(self, size: int, *, end: bool) -> None:
        """PeerError when the length differs from Content-Length (RFC 9113 8.1.1)."""
        if self.left == UNSAID:
            return
        self.left -= size
        if self.left < 0:
            raise PeerError("the body is longer than Content-Length")
        if end and self.left:
            raise PeerError("the body is shorter than Content-Length")


class Relay:
    """`sent` lists the streams whose whole message has been sent; the gate clears it."""

    __slots__ = ("_blocked", "_sink", "_source", "sent")

    def __init__(self, source: Peer, sink: Peer) -> None:
        self._source = source
        self._sink = sink
        self._blocked: dict[int, StreamHalf] = {}
        self.sent: list[int] = []

    def push(self, half: StreamHalf, data: bytes, begin: int, end: int, flags: int, flow: int) -> None:
        """DATA has arrived: send it on, or buffer it until the receiver takes it."""
        self._account(half, flow)
        size = end - begin
        sink = self._sink
        ended = flags & END_STREAM
        half.ended = bool(ended)
        if half.open and not half.queue and ((size <= half.window and size <= sink.window) or not size):
            if size or ended:
                half.window -= size
                sink.window -= size
                plain = flags <= END_STREAM and data[begin - 4] < 0x80  # no other flag, no reserved bit
                sink.out.append(
                    data[begin - HEAD_SIZE : end] if plain else frames.frame(DATA, ended, half.stream, data[begin:end])
                )
                sink.budget.earn(DELIVERED * (1 + (size >> REFRESH)))
                if ended:
                    self._finished(half)
            self._give_back(half, flow)
            return
        if size:
            half.queue += data[begin:end]
        self._give_back(half, flow - size)
        self.advance(half)

    def discard(self, half: StreamHalf, flow: int, *, end: bool) -> None:
        """Discard DATA that is not needed any more."""
        self._account(half, flow)
        half.ended = end
        self._source.took(flow)

    def finish(self, half: StreamHalf, trailers: FieldBlock | None = None) -> None:
        """The message has ended, but not with a DATA frame."""
        half.ended = True
        half.trailers = trailers
        self.advance(half)

    def speak(self, half: StreamHalf, text: bytes) -> None:
        """Send our own body instead of what is buffered; its head has been sent."""
        self.drop(half)
        if text:
            self._source.took(-len(text))  # balanced when it is sent: counted as if it came from the source
            half.queue += text
        half.ended = True
        self.advance(half)

    def drop(self, half: StreamHalf) -> None:
        """Discard what is buffered of a message."""
        self._source.took(len(half.queue))
        half.queue.clear()
        half.trailers = None
        self._blocked.pop(half.stream, None)

    def advance(self, half: StreamHalf) -> None:
        """Send as much of one message as its receiver allows."""
        if half.open and not half.sent:
            while self._step(half):
                pass

    def advance_all(self) -> None:
        """The connection's window has grown: send one frame of each stream in turn."""
        moved = True
        while moved and self._sink.window > 0:
            moved = False
            for half in list(self._blocked.values()):
                if self._step(half):
                    moved = True
                    if self._blocked.pop(half.stream, None):
                        self._blocked[half.stream] = half  # to the end of the queue

    def widen(self, half: StreamHalf, increment: int) -> None:
        half.window += increment
        if half.window > MAX_WINDOW:
            raise Http2Error("WINDOW_UPDATE makes the stream window too large", Code.FLOW_CONTROL_ERROR)
        if increment > 0:
            self.advance(half)

    def _step(self, half: StreamHalf) -> bool:
        """Send one frame if possible. True when there may be another."""
        queue, sink = half.queue, self._sink
        if not queue:
            self._blocked.pop(half.stream, None)
            if half.ended and not half.sent:
                self._end(half)
            return False
        size = min(len(queue), MAX_FRAME, half.window, sink.window)
        if size <= 0:
            self._blocked[half.stream] = half
            return False
        chunk = bytes(queue[:size])
        del queue[:size]
        sink.budget.earn(DELIVERED * ((not queue) + (size >> REFRESH)))
        last = half.ended and not queue and half.trailers is None
        half.window -= size
        sink.window -= size
        sink.out.append(frames.frame(DATA, END_STREAM if last else 0, half.stream, chunk))
        self._give_back(half, size)
        if last:
            self._finished(half)
        return not half.sent

    def _end(self, half: StreamHalf) -> None:
        if half.trailers is not None:
            self._sink.send_fields(half.stream, half.trailers, end=True)
        else:
            self._sink.out.append(frames.frame(DATA, END_STREAM, half.stream))
        self._finished(half)

    def _finished(self, half: StreamHalf) -> None:
        half.sent = True
        self._blocked.pop(half.stream, None)
        self.sent.append(half.stream)

    def _account(self, half: StreamHalf, flow: int) -> None:
        half.allowed -= flow
        if half.allowed < 0:
            raise Http2Error("more DATA than the stream's window allows", Code.FLOW_CONTROL_ERROR)

    def _give_back(self, half: StreamHalf, count: int) -> None:
        self._source.took(count)
        if half.ended:
            return
        half.owed += count
        if half.owed >= STREAM_WINDOW >> 1:
            self._source.out.append(frames.window_update(half.stream, half.owed))
            half.allowed += half.owed
            half.owed = 0
