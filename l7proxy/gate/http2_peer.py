"""Our end of one HTTP/2 connection: reads frames, keeps the connection's own affairs, tells what concerns streams.

It answers SETTINGS and PING, keeps the tables of both directions and the windows of the connection, joins
CONTINUATION, and bounds what the peer may cost. It knows no request: its owner does.
An Http2Error out of `receive` ends the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from l7proxy.gate.http2_budget import FRAME, Budget
from l7proxy.wire import http2_frames as frames
from l7proxy.wire.http2_fields import MAX_BLOCK, FieldBlock, FieldReader, FieldWriter
from l7proxy.wire.http2_frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    MAX_WINDOW,
    WITH_PRIORITY,
    Code,
    FrameReader,
    Http2Error,
    Setting,
)

STREAM_WINDOW: Final = 128 << 10
CONNECTION_WINDOW: Final = 512 << 10
"""Bytes of DATA that a peer may send ahead of what the other side takes: the most that we hold of it."""

DEFAULT_WINDOW: Final = 65535
MAX_CONTINUATIONS: Final = 16
"""Per header block; one of MAX_BLOCK bytes needs four (CVE-2024-27316 and its family sent them for ever)."""

FORGOTTEN: Final = 512
"""How many streams that we reset are remembered, for what the peer had sent before it knew."""

_SETTING_LIMITS: Final = {
    Setting.ENABLE_PUSH: (0, 1, Code.PROTOCOL_ERROR),
    Setting.INITIAL_WINDOW_SIZE: (0, MAX_WINDOW, Code.FLOW_CONTROL_ERROR),
    Setting.MAX_FRAME_SIZE: (frames.MAX_FRAME, (1 << 24) - 1, Code.PROTOCOL_ERROR),
}


class Owner(Protocol):
    """Who is told what a peer says of streams. `got_settings` comes before anything else: it does speak HTTP/2."""

    def got_settings(self) -> None:
        """They are in force: `Peer.streams` may be another number."""

    def got_fields(self, stream: int, block: FieldBlock, end: bool) -> None: ...

    def got_data(self, stream: int, data: bytes, begin: int, end: int, flags: int, flow: int) -> None:
        """The content is `data[begin:end]`; `flow` is what it counts with padding."""

    def got_reset(self, stream: int, code: int) -> None: ...

    def got_window(self, stream: int, increment: int) -> None:
        """Stream 0: the connection's, already counted."""

    def got_initial_window(self, difference: int) -> None: ...

    def got_goaway(self, last: int, code: int) -> None: ...

    def got_pong(self, payload: bytes) -> None: ...


class Peer:
    """`out` is what is to be written to it. `window` is what it lets us send, `initial` what each new stream begins
    with, `streams` how many it lets us open. `stopped`: nothing more is read."""

    __slots__ = (
        "_allowed",
        "_block",
        "_block_end",
        "_block_stream",
        "_continuations",
        "_forgotten",
        "_frames",
        "_owed",
        "_owner",
        "_reader",
        "_settled",
        "_writer",
        "budget",
        "initial",
        "out",
        "stopped",
        "streams",
        "window",
    )

    def __init__(
        self, owner: Owner, ticks_ns: Callable[[], int], settings: Sequence[tuple[int, int]], preface: bytes
    ) -> None:
        self._owner = owner
        self._frames = FrameReader()
        self._reader = FieldReader()
        self._writer = FieldWriter()
        self._settled = False
        self._block: bytearray | None = None  # an unfinished header block
        self._block_stream = 0
        self._block_end = False
        self._continuations = 0
        self._forgotten: dict[int, None] = {}
        self._allowed = CONNECTION_WINDOW
        self._owed = 0
        self.budget = Budget(ticks_ns)
        self.window = DEFAULT_WINDOW
        self.initial = DEFAULT_WINDOW
        self.streams = 1 << 31
        self.stopped = False
        announced = [*settings, (Setting.INITIAL_WINDOW_SIZE, STREAM_WINDOW), (Setting.MAX_HEADER_LIST_SIZE, MAX_BLOCK)]
        self.out = [
            preface,
            frames.settings(announced),
            frames.window_update(0, CONNECTION_WINDOW - DEFAULT_WINDOW),
        ]

    @property
    def settled(self) -> bool:
        return self._settled

    @property
    def in_block(self) -> bool:
        """A header block has begun and not ended."""
        return self._block is not None or self._frames.begun == frames.HEADERS

    @property
    def in_frame(self) -> bool:
        return bool(self._frames.rest)

    @property
    def held(self) -> int:
        """Bytes of it that are kept: DATA that the other side has not taken, an unfinished frame and header block."""
        unfinished = len(self._frames.rest) + (len(self._block) if self._block is not None else 0)
        return CONNECTION_WINDOW - self._allowed - self._owed + unfinished

    def receive(self, data: bytes) -> None:
        for kind, flags, stream, source, begin, end in self._frames.feed(data):
            if self.stopped:
                return
            if not self._settled and (kind != frames.SETTINGS or flags & ACK):
                raise Http2Error("the first frame is not SETTINGS")
            if self._block is not None:
                self._continue(kind, flags, stream, source[begin:end])
            elif kind == frames.DATA:
                self._take_data(flags, stream, source, begin, end)
            elif kind == frames.HEADERS:
                self._take_headers(flags, stream, source, begin, end)
            else:
                self.budget.spend(FRAME, _NAMES.get(kind, "a frame of an unknown type"))
                take = _TAKERS.get(kind)
                if take is not None:  # RFC 9113 5.5: frames of unknown types are ignored
                    take(self, flags, stream, source, begin, end)

    def stop(self) -> None:
        """Nothing more is read; whoever listened is let go of."""
        self.stopped = True
        del self._owner

    def take_out(self) -> bytes:
        out, self.out = self.out, []
        return b"".join(out)

    # --- sending -----------------------------------------------------------------------------------------------------

    def send_fields(self, stream: int, block: FieldBlock, *, end: bool) -> None:
        self.out.append(frames.headers(stream, self._writer.write(block), end=end))

    def send_reset(self, stream: int, code: int, *, ended: bool) -> None:
        """`ended`: the peer has said all on that stream, so nothing more will come."""
        self.out.append(frames.rst_stream(stream, code))
        if not ended:
            self._forgotten[stream] = None
            if len(self._forgotten) > FORGOTTEN:
                del self._forgotten[next(iter(self._forgotten))]

    def was_reset(self, stream: int) -> bool:
        """By us, with more of it possibly still on its way."""
        return stream in self._forgotten

    def took(self, count: int) -> None:
        """DATA bytes of it are ours no more: they may come again (RFC 9113 5.2). It is told when that is as much as it
        still may send: what streams that stand still have of the window must not keep that from the others."""
        self._owed += count
        if self._owed >= self._allowed and self._owed > 0:
            self.out.append(frames.window_update(0, self._owed))
            self._allowed += self._owed
            self._owed = 0

    def took_stray(self, stream: int, count: int, last: int) -> None:
        """DATA on a stream that is no more: what was on its way is thrown away, all else is a fault. `last` is the last
        stream that there was; with MAX_STREAM none is known."""
        if stream > last:
            raise Http2Error("DATA on a stream that was never opened")
        if last != frames.MAX_STREAM and not self.was_reset(stream):
            raise Http2Error("DATA on a closed stream", Code.STREAM_CLOSED)
        self.took(count)

    # --- frames of streams -------------------------------------------------------------------------------------------

    def _take_data(self, flags: int, stream: int, source: bytes, begin: int, end: int) -> None:
        flow = end - begin
        if stream == 0:
            raise Http2Error("DATA on stream 0")
        self._allowed -= flow
        if self._allowed < 0:
            raise Http2Error("more DATA than the connection's window allows", Code.FLOW_CONTROL_ERROR)
        if flags & frames.PADDED:
            begin, end = frames.unpadded(flags, source, begin, end)
        if begin == end and not flags & END_STREAM:
            self.budget.spend(FRAME, "empty DATA")
        self._owner.got_data(stream, source, begin, end, flags, flow)

    def _take_headers(self, flags: int, stream: int, source: bytes, begin: int, end: int) -> None:
        if stream == 0:
            raise Http2Error("HEADERS on stream 0")
        begin, end = frames.unpadded(flags, source, begin, end)
        if flags & WITH_PRIORITY:  # the field is obsolete (RFC 9113 5.3.2)
            begin += 5
            if begin > end:
                raise Http2Error("a HEADERS frame is too short for its priority", Code.FRAME_SIZE_ERROR)
        ended = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            self._owner.got_fields(stream, self._reader.read(source[begin:end]), ended)
            return
        self._block = bytearray(source[begin:end])
        self._block_stream, self._block_end, self._continuations = stream, ended, 0

    def _continue(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        block = self._block
        assert block is not None
        if kind != frames.CONTINUATION or stream != self._block_stream:
            raise Http2Error("a header block is interrupted by another frame")
        self._continuations += 1
        block += payload
        if len(block) > MAX_BLOCK:
            raise Http2Error(f"a header block is longer than {MAX_BLOCK} bytes", Code.ENHANCE_YOUR_CALM, status=431)
        if self._continuations > MAX_CONTINUATIONS:
            raise Http2Error(
                f"a header block has more than {MAX_CONTINUATIONS} CONTINUATION frames",
                Code.ENHANCE_YOUR_CALM,
                status=431,
            )
        if flags & END_HEADERS:
            self._block = None
            self._owner.got_fields(stream, self._reader.read(bytes(block)), self._block_end)

    def _take_reset(self, flags: int, stream: int, source: bytes, begin: int, end: int) -> None:
        code = frames.long_at("RST_STREAM", source, begin, end)
        if stream == 0:
            raise Http2Error("RST_STREAM on stream 0")
        self._forgotten.pop(stream, None)
        self._owner.got_reset(stream, code)

    def _take_window(self, flags: int, stream: int, source: bytes, begin: int, end: int) -> None:
        increment = frames.long_at("WINDOW_UPDATE", source, begin, end) & MAX_WINDOW
        if increment == 0:
            raise Http2Error("WINDOW_UPDATE with an increment of 0")
        if stream == 0:
            self.window += increment
            if self.window > MAX_WINDOW:
                raise Http2Error("WINDOW_UPDATE makes the connection window too large", Code.FLOW_CONTROL_ERROR)
        self._owner.got_window(stream, increment)

    def _take_priority(self, flags: int, stream: int, source: bytes, begin: int, end: int) -> None:
        """Obsolete (RFC 9113 5.3.2): checked and forgotten."""
        if stream == 0:
            raise Http2Error("PRIORITY on stream 0")
        if end - begin != 5:
            raise Http2Error("a PRIORITY frame is not 5 bytes long", Code.FRAME_SIZE_ERROR)

    # --- frames of the connection ------------------------------------------------------------------------------------

    def _take_settings(self, flags: int, stream: int, source: bytes, begin: int, end: int) -> None:
        if stream:
            raise Http2Error("SETTINGS on a stream")
        if flags & ACK:
            if begin != end:
                raise Http2Error("SETTINGS with ACK is not empty", Code.FRAME_SIZE_ERROR)
            return
        pairs = frames.read_settings(source, begin, end)
        self.budget.spend(len(pairs), "SETTINGS")
        for name, value in pairs:
            self._check_setting(name, value)
        for name, value in dict(pairs).items():  # the last of each name: nothing is sent in between
            self._set(name, value)
        self.out.append(frames.frame(frames.SETTINGS, ACK, 0))
        self._settled = True
        self._owner.got_settings()

    @staticmethod
    def _check_setting(name: int, value: int) -> None:
        if name in _SETTING_LIMITS:
            least, most, code = _SETTING_LIMITS[Setting(name)]
            if not least <= value <= most:
                raise Http2Error(f"{Setting(name).name} is {value}", code)

    def _set(self, name: int, value: int) -> None:
        if name == Setting.INITIAL_WINDOW_SIZE:
            difference, self.initial = value - self.initial, value
            self._owner.got_initial_window(difference)
        elif name == Setting.HEADER_TABLE_SIZE:
            self._writer.resize(value)
        elif name == Setting.MAX_CONCURRENT_STREAMS:
            self.streams = value

    def _take_ping(self, flags: int, stream: int, source: bytes, begin: int, end: int) -> None:
        if stream:
            raise Http2Error("PING on a stream")
        if end - begin != 8:
            raise Http2Error("a PING frame is not 8 bytes long", Code.FRAME_SIZE_ERROR)
        if flags & ACK:
            self._owner.got_pong(source[begin:end])
        else:
            self.out.append(frames.frame(frames.PING, ACK, 0, source[begin:end]))

    def _take_goaway(self, flags: int, stream: int, source: bytes, begin: int, end: int) -> None:
        if stream:
            raise Http2Error("GOAWAY on a stream")
        self._owner.got_goaway(*frames.read_goaway(source, begin, end))

    def _take_push(self, flags: int, stream: int, source: bytes, begin: int, end: int) -> None:
        raise Http2Error("PUSH_PROMISE is not allowed")

    def _take_stray(self, flags: int, stream: int, source: bytes, begin: int, end: int) -> None:
        raise Http2Error("CONTINUATION without a header block")


_TAKERS: Final[dict[int, Callable[[Peer, int, int, bytes, int, int], None]]] = {
    frames.PRIORITY: Peer._take_priority,
    frames.RST_STREAM: Peer._take_reset,
    frames.SETTINGS: Peer._take_settings,
    frames.PUSH_PROMISE: Peer._take_push,
    frames.PING: Peer._take_ping,
    frames.GOAWAY: Peer._take_goaway,
    frames.WINDOW_UPDATE: Peer._take_window,
    frames.CONTINUATION: Peer._take_stray,
}
_NAMES: Final = {
    frames.PRIORITY: "PRIORITY",
    frames.RST_STREAM: "RST_STREAM",
    frames.SETTINGS: "SETTINGS",
    frames.PUSH_PROMISE: "PUSH_PROMISE",
    frames.PING: "PING",
    frames.GOAWAY: "GOAWAY",
    frames.WINDOW_UPDATE: "WINDOW_UPDATE",
    frames.CONTINUATION: "CONTINUATION",
}
