"""Our end of one HTTP/2 connection: reads frames, handles the connection's own, passes those of streams to its owner.

It answers SETTINGS and PING, keeps the HPACK tables of both directions and the connection's windows, joins
CONTINUATION, and bounds what the peer may cost. It knows frames, not requests: these are the owner's.
An Http2Error from `receive` ends the connection.
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
"""Bytes of DATA that a peer may send before the other side takes them: the most that we buffer for it."""

DEFAULT_WINDOW: Final = 65535
MAX_CONTINUATIONS: Final = 16
"""Per header block; a block of MAX_BLOCK bytes needs four. Unlimited ones are an attack (CVE-2024-27316)."""

FORGOTTEN: Final = 512
"""Number of streams reset by us that are remembered, for frames that the peer sent before it received the reset."""

_SETTING_LIMITS: Final = {
    Setting.ENABLE_PUSH: (0, 1, Code.PROTOCOL_ERROR),
    Setting.INITIAL_WINDOW_SIZE: (0, MAX_WINDOW, Code.FLOW_CONTROL_ERROR),
    Setting.MAX_FRAME_SIZE: (frames.MAX_FRAME, (1 << 24) - 1, Code.PROTOCOL_ERROR),
}


class Owner(Protocol):
    """Receives a peer's frames of streams. `got_settings` is called first: the peer does speak HTTP/2."""

    def got_settings(self) -> None:
        """The settings are applied: `Peer.streams` may have changed."""

    def got_fields(self, stream: int, block: FieldBlock, end: bool) -> None: ...

    def got_data(self, stream: int, data: bytes, begin: int, end: int, flags: int, flow: int) -> None:
        """The content is `data[begin:end]`; `flow` is its length with padding, for flow control."""

    def got_reset(self, stream: int, code: int) -> None: ...

    def got_window(self, stream: int, increment: int) -> None:
        """Stream 0: the connection's window, already increased."""

    def got_initial_window(self, difference: int) -> None: ...

    def got_goaway(self, last: int, code: int) -> None: ...

    def got_pong(self, payload: bytes) -> None: ...


class Peer:
    """`out`: frames to write to the peer. `window`: bytes that it lets us send; `initial`: the same for a new stream;
    `streams`: how many it lets us open. `stopped`: no more frames are read."""

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
    __deletable__ = ("_owner",)
    """Attributes that the compiled class lets go of, too (mypyc)."""

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
        """A header block is incomplete."""
        return self._block is not None or self._frames.begun == frames.HEADERS

    @property
    def in_frame(self) -> bool:
        return bool(self._frames.rest)

    @property
    def held(self) -> int:
        """Bytes buffered: DATA that the other side has not taken, an unfinished frame and header block."""
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
        """Read no more frames, and break the reference to the owner."""
        self.stopped = True
        del self._owner

    def take_out(self) -> bytes:
        out, self.out = self.out, []
        return b"".join(out)

    # --- sending -----------------------------------------------------------------------------------------------------

    def send_fields(self, stream: int, block: FieldBlock, *, end: bool) -> None:
        self.out.append(frames.headers(stream, self._writer.write(block), end=end))

    def send_reset(self, stream: int, code: int, *, ended: bool) -> None:
        """`ended`: the peer has sent END_STREAM, so no more frames will come."""
        self.out.append(frames.rst_stream(stream, code))
        if not ended:
            self._forgotten[stream] = None
            if len(self._forgotten) > FORGOTTEN:
                del self._forgotten[next(iter(self._forgotten))]

    def was_reset(self, stream: int) -> bool:
        """Reset by us; frames of it may still be in transit."""
        return stream in self._forgotten

    def took(self, count: int) -> None:
        """`count` bytes of DATA are no longer buffered: return them to the window (RFC 9113 5.2). The update is sent
        once it doubles what the peer may still send, so that stalled streams do not starve the others of window."""
        self._owed += count
        if self._owed >= self._allowed and self._owed > 0:
            self.out.append(frames.window_update(0, self._owed))
            self._allowed += self._owed
            self._owed = 0

    def took_stray(self, stream: int, count: int, last: int) -> None:
        """DATA on a closed stream: discarded if it may have been in transit, else an error. `last` is the last stream
        opened; MAX_STREAM: unknown."""
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
        """Obsolete (RFC 9113 5.3.2): checked and ignored."""
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
        for name, value in dict(pairs).items():  # only the last value of each setting counts
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
