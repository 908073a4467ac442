"""An HTTP/2 conversation through a gate: h2 is the client and the server; an independent reader checks all of it.

What a test sends as the client or the server goes through the gate in the splits of that test, back and forth until no
more bytes come. `say` sends raw bytes in the client's place, `reply` in the server's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes, Settings

from l7proxy.flows.records import HttpRequest, HttpResponse, Record
from l7proxy.gate.actions import (
    Action,
    Close,
    Connect,
    Emit,
    Gate,
    HalfClose,
    Pause,
    Resume,
    Side,
    SwitchGate,
    ToClient,
    ToServer,
)
from l7proxy.gate.clock import Clock
from l7proxy.gate.detect import gate_for
from l7proxy.gate.http2_stream_table import MAX_STREAMS
from l7proxy.gate.options import HttpOptions
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.policy.l7 import KINDS
from l7proxy.policy.rules import HttpRules
from l7proxy.wire import http2_frames as frames
from l7proxy.wire.http2_frames import HEAD_SIZE, PREFACE
from tests.unit.gate.talk import CONN, Split, all_but_deny, words

Fields = list[tuple[bytes, bytes]]


def line(path: str = "/a", method: str = "GET", *more: tuple[str, str]) -> Fields:
    """The fields of a request."""
    fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "h"), *more]
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]


OK: Fields = [(b":status", b"200"), (b"x-from", b"server")]


@dataclass
class Message:
    """A request or response as its receiver got it. `reset` is the code of RST_STREAM."""

    fields: Fields = field(default_factory=list)
    interim: list[Fields] = field(default_factory=list)
    data: bytes = b""
    trailers: Fields = field(default_factory=list)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        return int(dict(self.fields)[b":status"])


class End:
    """One of the two peers. `raw`: the test sends frames in its place that h2 does not track."""

    def __init__(self, *, client: bool) -> None:
        config = H2Configuration(
            client_side=client,
            header_encoding=False,
            normalize_outbound_headers=False,
            validate_outbound_headers=False,
            normalize_inbound_headers=False,
        )
        self.h2 = H2Connection(config)
        self.messages: dict[int, Message] = {}
        self.goaways: list[tuple[int, int]] = []
        self.acknowledges = True
        self.raw = False
        self._heard = b""
        self.unacknowledged: list[DataReceived] = []

    def hear(self, data: bytes) -> None:
        """Frame by frame: h2 ends everything at a GOAWAY, but open streams go on."""
        self._heard += data
        while size := self._next():
            piece, self._heard = self._heard[:size], self._heard[size:]
            if self.raw:
                self._take_raw(piece)
                continue
            state = self.h2.state_machine.state
            for event in self.h2.receive_data(piece):
                self._take(event)
            if self.h2.state_machine.state is ConnectionState.CLOSED:
                self.h2.state_machine.state = state

    def _take_raw(self, frame: bytes) -> None:
        if frame[3] == frames.GOAWAY:
            self.goaways.append(frames.read_goaway(frame, HEAD_SIZE, len(frame)))

    def _next(self) -> int:
        """The size of the next whole frame (or the preface); 0 if none is complete."""
        if self._heard.startswith(PREFACE[:3]):
            size = len(PREFACE)
        else:
            size = HEAD_SIZE + int.from_bytes(self._heard[:3], "big")
        return size if len(self._heard) >= max(size, HEAD_SIZE) else 0

    def acknowledge(self) -> None:
        """Opens the windows by what has been read."""
        for event in self.unacknowledged:
            self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        self.unacknowledged.clear()

    def _take(self, event: Event) -> None:
        stream: Any = getattr(event, "stream_id", None)
        match event:
            case RequestReceived() | ResponseReceived():
                self.of(stream).fields = [(bytes(n), bytes(v)) for n, v in event.headers or ()]
            case InformationalResponseReceived():
                self.of(stream).interim.append([(bytes(n), bytes(v)) for n, v in event.headers or ()])
            case TrailersReceived():
                self.of(stream).trailers = [(bytes(n), bytes(v)) for n, v in event.headers or ()]
            case DataReceived():
                self.of(stream).data += event.data or b""
                self.unacknowledged.append(event)
                if self.acknowledges:
                    self.acknowledge()
            case StreamEnded():
                self.of(stream).ended = True
            case StreamReset():
                self.of(stream).reset = int(event.error_code or 0)
            case ConnectionTerminated():
                self.goaways.append((event.last_stream_id or 0, int(event.error_code or 0)))

    def of(self, stream: int) -> Message:
        return self.messages.setdefault(stream, Message())


class Conversation:
    def __init__(
        self, split: Split, *, options: HttpOptions | None = None, takes: int = MAX_STREAMS, window: int = 65535
    ) -> None:
        """The server's first SETTINGS allow `takes` streams at a time, with `window` bytes each."""
        self._split = split
        self.judge: Callable[[Request], PolicyVerdict] = all_but_deny
        self.client = End(client=True)
        self.server = End(client=False)
        self.records: list[Record] = []
        self.asked: list[Request] = []
        self.to_server = b""
        self.to_client = b""
        self.connects = 0
        self.reachable = True
        self._paused = False
        self._closed = ""
        self.half_closed: list[str] = []
        self.clock = 1_000_000_000
        self.wall = 0
        self._held: list[bytes] = []
        self._spoken = False
        self._unheard = b""
        self.gate: Gate = gate_for(
            KINDS[HttpRules], self._ask, CONN, Clock(self._wall, self._now), options or HttpOptions()
        )
        self.client.h2.initiate_connection()
        first = {SettingCodes.MAX_CONCURRENT_STREAMS: takes, SettingCodes.INITIAL_WINDOW_SIZE: window}
        self.server.h2.local_settings = Settings(client=False, initial_values=first)
        self.server.h2.initiate_connection()
        self._obey(self.gate.started())

    # --- test actions ------------------------------------------------------------------------------------------------

    def get(self, stream: int, fields: Fields | None = None, *, end: bool = True) -> None:
        self.client.h2.send_headers(stream, fields or line(), end_stream=end)
        self.run()

    def answer(self, stream: int, fields: Fields | None = None, body: bytes = b"") -> None:
        self.server.h2.send_headers(stream, fields or OK, end_stream=not body)
        if body:
            self.server.h2.send_data(stream, body, end_stream=True)
        self.run()

    def run(self) -> None:
        """Carries bytes until neither side has more to send."""
        quiet = False
        while not quiet:
            quiet = True
            if self._closed:
                self._held.clear()
            if self._held and not self._paused:
                quiet = False
                self._tell_client(self._held.pop(0))
            elif data := self.client.h2.data_to_send():
                quiet = False
                self._held += self._split(data)
            if self.connects and self.reachable and not self._closed:
                if not self._spoken:
                    self._spoken = True
                    self._obey(self.gate.connected())
                if self._unheard:
                    quiet = False
                    heard, self._unheard = self._unheard, b""
                    self.server.hear(heard)
                if data := self.server.h2.data_to_send():
                    quiet = False
                    self.reply(data)

    def say(self, data: bytes) -> None:
        """Raw bytes in the client's place, after what it has sent."""
        self.run()
        for piece in self._split(data):
            self._tell_client(piece)
        self.run()

    def reply(self, data: bytes) -> None:
        for piece in self._split(data):
            self._obey(self.gate.from_server(piece))

    def client_eof(self) -> None:
        self._obey(self.gate.client_eof())
        self.run()

    def server_eof(self) -> None:
        self._obey(self.gate.server_eof())

    def client_lost(self) -> None:
        self._obey(self.gate.client_lost())

    def upstream_failed(self, reason: str) -> None:
        self._obey(self.gate.upstream_failed(reason))

    def drain(self) -> None:
        self._obey(self.gate.draining())
        self.run()

    def policy_changed(self) -> None:
        self._obey(self.gate.policy_changed())
        self.run()

    def timed_out(self) -> None:
        self._obey(self.gate.timed_out(self.gate.waiting_for))

    # --- results -----------------------------------------------------------------------------------------------------

    def end(self) -> str:
        """How the gate ended the connection, "close" or "reset"; empty while it is open."""
        return self._closed

    def is_paused(self) -> bool:
        return self._paused

    def told(self) -> list[str]:
        """The records since the last call, as text."""
        seen, self.records = [words(record) for record in self.records], []
        return seen

    def reasons(self) -> list[str]:
        return [record.policy_verdict.reason for record in self.records]

    def pairs(self) -> bool:
        """Whether each request has exactly one answer."""
        asked = sum(isinstance(record, HttpRequest) for record in self.records)
        return asked == sum(isinstance(record, HttpResponse) for record in self.records)

    # --- internals ---------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        self.clock += 1000
        return self.clock

    def _wall(self) -> int:
        return self._now() + self.wall

    def _ask(self, request: Request) -> PolicyVerdict:
        self.asked.append(request)
        return self.judge(request)

    def _tell_client(self, piece: bytes) -> None:
        self._obey(self.gate.from_client(piece))

    def _obey(self, actions: Iterable[Action]) -> None:
        for action in actions:
            assert not self._closed, f"{action} after the end"
            self._do(action)

    def _do(self, action: Action) -> None:
        match action:
            case ToServer(data):
                assert self.connects and data
                self.to_server += data
                self._unheard += data
            case ToClient(data):
                assert data
                self.to_client += data
                self.client.hear(data)
            case Emit(record):
                self.records.append(record)
            case Connect():
                self.connects += 1
                assert self.connects == 1
            case SwitchGate(gate=gate):
                self.gate = gate
            case HalfClose(side):
                self.half_closed.append(side.name.lower())
            case Close(reset):
                self._closed = "reset" if reset else "close"
            case Pause(side):
                assert side is Side.CLIENT and not self._paused
                self._paused = True
            case Resume(side):
                assert side is Side.CLIENT and self._paused
                self._paused = False
            case _:
                raise AssertionError(f"{action} was not to be expected")
