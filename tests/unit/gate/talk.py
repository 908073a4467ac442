"""A conversation with a gate, as a session runs it: actions are executed, and the output is compared.

One `Talk` splits every read in its own way; the fixture `talk` (conftest.py) runs each test in all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed, Record
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
from l7proxy.gate.options import HttpOptions
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.policy.l7 import KINDS
from l7proxy.policy.rules import HttpRules

CONN = Conn("10.0.0.1", 40000, "10.0.0.2", 80, 1001, 1002)
ALLOWED = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS)
DENIED = PolicyVerdict(Verdict.DROPPED, Direction.INGRESS, reason="no rule matched")

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
DENY = b"GET /deny HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 15\r\ncontent-type: text/plain\r\n\r\nAccess denied\r\n"
FORBIDDEN_CLOSE = FORBIDDEN.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)

Split = Callable[[bytes], Iterable[bytes]]


def all_but_deny(request: Request) -> PolicyVerdict:
    """The policy of most tests: everything but paths that begin with /deny."""
    return DENIED if request.path.startswith(b"/deny") else ALLOWED


@dataclass
class Seen:
    """The output since the last call."""

    server: bytes = b""
    client: bytes = b""
    records: list[str] = field(default_factory=list)
    fin: list[str] = field(default_factory=list)
    end: str = ""


def words(record: Record) -> str:
    match record:
        case HttpRequest():
            return f"{record.policy_verdict.verdict.name} {record.method} {record.url}"
        case HttpResponse():
            return f"{record.status} {record.method} {record.url}"
        case Malformed():
            return f"malformed {record.status}"
        case Connection():
            return "connection"


class Talk:
    def __init__(self, split: Split) -> None:
        self._split = split
        self.options = HttpOptions()
        self.judge: Callable[[Request], PolicyVerdict] = all_but_deny
        self.by_request = True
        self.records: list[Record] = []
        self.asked: list[Request] = []
        self.connects = 0
        self.revoked = False
        self._paused = False
        self._seen = Seen()
        self._gate: Gate | None = None
        self._over = False
        self._waiting: deque[bytes] = deque()
        self._eof_waits = False
        self._clock = 1_000_000

    @property
    def gate(self) -> Gate:
        if self._gate is None:
            kind = KINDS[HttpRules] if self.by_request else None
            self._gate = gate_for(kind, self._ask, CONN, Clock(self._now, self._now), self.options)
            self._obey(self._gate.started())
        return self._gate

    def client(self, data: bytes) -> None:
        self._waiting.extend(self._split(data))
        self._read_client()

    def server(self, data: bytes) -> None:
        assert self.connects, "a server that nobody called cannot speak"
        for piece in self._split(data):
            self._obey(self.gate.from_server(piece))

    def client_eof(self) -> None:
        self._eof_waits = True
        self._read_client()

    def server_eof(self) -> None:
        self._obey(self.gate.server_eof())

    def connected(self) -> None:
        self._obey(self.gate.connected())

    def client_lost(self) -> None:
        self._obey(self.gate.client_lost())

    def policy_changed(self) -> None:
        self._obey(self.gate.policy_changed())

    def drain(self) -> None:
        self._obey(self.gate.draining())

    def upstream_failed(self, reason: str) -> None:
        self._obey(self.gate.upstream_failed(reason))

    def timed_out(self) -> None:
        self._obey(self.gate.timed_out(self.gate.waiting_for))

    def expect(
        self,
        *,
        server: bytes = b"",
        client: bytes = b"",
        records: tuple[str, ...] = (),
        fin: tuple[str, ...] = (),
        end: str = "",
    ) -> None:
        """Expects exactly this output since the last call. `end` is "close" or "reset"."""
        seen, self._seen = self._seen, Seen()
        assert (seen.server, seen.client) == (server, client)
        assert (seen.records, seen.fin, seen.end) == (list(records), list(fin), end)

    def expect_refusal(self, status: int, why: str, *, records: tuple[str, ...] = ()) -> None:
        """Expects our own answer with `status`, naming `why`; a Malformed record unless others are given; the close."""
        seen, self._seen = self._seen, Seen()
        assert seen.client.startswith(b"HTTP/1.1 %d " % status), seen.client
        head, _, text = seen.client.partition(b"\r\n\r\n")
        assert b"\r\nconnection: close" in head
        assert why in text.decode()
        assert seen.records == list(records or (f"malformed {status}",))
        assert (seen.server, seen.end) == (b"", "close")

    def is_paused(self) -> bool:
        return self._paused

    def take(self) -> Seen:
        seen, self._seen = self._seen, Seen()
        return seen

    def _now(self) -> int:
        self._clock += 1000
        return self._clock

    def _ask(self, request: Request) -> PolicyVerdict:
        self.asked.append(request)
        return self.judge(request)

    def _read_client(self) -> None:
        while self._waiting and not self._paused:
            self._obey(self.gate.from_client(self._waiting.popleft()))
        if self._eof_waits and not self._waiting and not self._paused:
            self._eof_waits = False
            self._obey(self.gate.client_eof())

    def _obey(self, actions: list[Action]) -> None:
        for action in actions:
            assert not self._over, f"{action} after the end"
            self._do(action)
        if self._over:
            self._waiting.clear()

    def _do(self, action: Action) -> None:
        seen = self._seen
        match action:
            case ToServer(data):
                assert self.connects and data
                seen.server += data
            case ToClient(data):
                assert data
                seen.client += data
            case Emit(record):
                self.records.append(record)
                seen.records.append(words(record))
            case Connect():
                self.connects += 1
                assert self.connects == 1
            case HalfClose(side):
                seen.fin.append(side.name.lower())
            case SwitchGate(gate=gate):
                self._gate = gate
            case Close(reset, revoked):
                self.revoked = revoked
                seen.end = "reset" if reset else "close"
                self._over = True
            case Pause(side):
                assert side is Side.CLIENT and not self._paused
                self._paused = True
            case Resume(side):
                assert side is Side.CLIENT and self._paused
                self._paused = False
                self._read_client_soon()

    def _read_client_soon(self) -> None:
        """An event loop would read in its next turn; here the waiting bytes are added to the current read."""
        if self._waiting and self._gate is not None and not self._over:
            self._read_client()
