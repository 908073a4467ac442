"""Chooses the gate of a connection: by the kind of its L7 rules, and for HTTP by its first bytes; without them TCP.

An HTTP connection that begins with the HTTP/2 preface (prior knowledge, RFC 9113 3.3) is HTTP/2: no HTTP/1 request
begins so. Everything else is HTTP/1, or refused as invalid HTTP/1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from l7proxy.gate.actions import Action, Gate, Phase, Side, SwitchGate
from l7proxy.gate.clock import Clock
from l7proxy.gate.http1 import HttpGate
from l7proxy.gate.http2 import Http2Gate
from l7proxy.gate.options import HttpOptions
from l7proxy.gate.tcp import TcpGate
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction
from l7proxy.policy.l7 import Kind
from l7proxy.wire.http2_frames import PREFACE

Judge = Callable[[Any], PolicyVerdict]
"""The verdict on one request of the kind that the gate reads."""


class ProtocolDetector:
    """Waits for enough bytes to tell HTTP/2 from HTTP/1, then switches to its gate. Usually one read is enough."""

    __slots__ = ("_conn", "_held", "_leaving", "_make_http1", "_make_http2")

    def __init__(
        self,
        judge: Judge,
        conn: Conn,
        clock: Clock,
        options: HttpOptions,
        direction: Direction,
    ) -> None:
        self._conn = conn
        self._held = b""
        self._leaving = False
        self._make_http1 = partial(HttpGate, judge, now_ns=clock.now_ns, options=options, direction=direction)
        self._make_http2 = partial(Http2Gate, judge, clock=clock, options=options, direction=direction)

    def must_read(self, side: Side) -> bool:
        """False: nothing has been written yet."""
        return False

    @property
    def waiting_for(self) -> Phase:
        return Phase.HEAD if self._held else Phase.IDLE

    @property
    def held(self) -> int:
        return len(self._held)

    def started(self) -> list[Action]:
        return []

    def connected(self) -> list[Action]:
        return []

    def from_client(self, data: bytes) -> list[Action]:
        if self._held:
            data = self._held + data
        if data.startswith(PREFACE):
            gate = self._make_http2(self._conn)
            actions = [SwitchGate(gate), *gate.started(), *gate.from_client(data[len(PREFACE) :])]
            return [*actions, *gate.draining()] if self._leaving else actions
        if PREFACE.startswith(data):
            self._held = data
            return []
        self._held = data
        return self._enter(lambda gate: [])

    def from_server(self, data: bytes) -> list[Action]:
        return self._enter(lambda gate: gate.from_server(data))

    def spliced(self, source: Side, count: int) -> list[Action]:
        return []

    def client_eof(self) -> list[Action]:
        return self._enter(lambda gate: gate.client_eof())

    def server_eof(self) -> list[Action]:
        return self._enter(lambda gate: gate.server_eof())

    def client_lost(self, reason: str = "the client closed the connection") -> list[Action]:
        return self._enter(lambda gate: gate.client_lost(reason))

    def upstream_failed(self, reason: str) -> list[Action]:
        return self._enter(lambda gate: gate.upstream_failed(reason))

    def identified(self, conn: Conn) -> None:
        self._conn = conn

    def policy_changed(self) -> list[Action]:
        return []

    def draining(self) -> list[Action]:
        self._leaving = True
        return []

    def timed_out(self, phase: Phase) -> list[Action]:
        return self._enter(lambda gate: gate.timed_out(phase)) if phase is self.waiting_for else []

    def _enter(self, then: Callable[[HttpGate], list[Action]]) -> list[Action]:
        """Switch to HTTP/1, whose gate refuses invalid bytes."""
        gate = self._make_http1(self._conn)
        if self._leaving:
            gate.draining()
        held, self._held = self._held, b""
        return [SwitchGate(gate), *gate.started(), *(gate.from_client(held) if held else ()), *then(gate)]


GATES: Final[dict[str, Callable[[Judge, Conn, Clock, HttpOptions, Direction], Gate]]] = {"http": ProtocolDetector}
"""By `policy.l7.Kind.key`: what makes the gate of a connection. Each enforced kind has one."""


def gate_for(
    kind: Kind | None,
    judge: Judge,
    conn: Conn,
    clock: Clock,
    options: HttpOptions,
    direction: Direction = Direction.INGRESS,
) -> Gate:
    """The gate of a new connection to which L7 rules of this kind apply; None: no L7 rules. KeyError without a gate."""
    return TcpGate() if kind is None else GATES[kind.key](judge, conn, clock, options, direction)
