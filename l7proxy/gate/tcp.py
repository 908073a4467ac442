"""The gate of connections whose policy has no HTTP rules: passes bytes and FIN in both directions.

It emits no records: the session has already recorded the connection's verdict.
"""

from __future__ import annotations

from l7proxy.gate.actions import Action, Close, Connect, HalfClose, Phase, Side, ToClient, ToServer
from l7proxy.gate.bulk import offer
from l7proxy.model.policy_verdict import Conn
from l7proxy.wire.body import ENDLESS


class TcpGate:
    __slots__ = ("_client_done", "_connected", "_over", "_server_done")

    def __init__(self) -> None:
        self._connected = False
        self._client_done = False
        self._server_done = False
        self._over = False

    def must_read(self, side: Side) -> bool:
        """False: the protocol is unknown."""
        return False

    @property
    def waiting_for(self) -> Phase:
        if self._over:
            return Phase.CLOSED
        return Phase.TUNNEL if self._connected else Phase.CONNECT

    @property
    def held(self) -> int:
        return 0

    def started(self) -> list[Action]:
        """Connect at once: the server may send first."""
        return [Connect()]

    def connected(self) -> list[Action]:
        self._connected = True
        return []

    def from_client(self, data: bytes) -> list[Action]:
        if self._over or self._client_done:
            return []
        actions: list[Action] = [ToServer(data)]
        offer(Side.CLIENT, ENDLESS, len(data), actions)
        return actions

    def from_server(self, data: bytes) -> list[Action]:
        self._connected = True
        if self._over or self._server_done:
            return []
        actions: list[Action] = [ToClient(data)]
        offer(Side.SERVER, ENDLESS, len(data), actions)
        return actions

    def spliced(self, source: Side, count: int) -> list[Action]:
        self._connected = True
        return []

    def client_eof(self) -> list[Action]:
        if self._over or self._client_done:
            return []
        self._client_done = True
        return self._end() if self._server_done else [HalfClose(Side.SERVER)]

    def server_eof(self) -> list[Action]:
        if self._over or self._server_done:
            return []
        self._server_done = True
        return self._end() if self._client_done else [HalfClose(Side.CLIENT)]

    def client_lost(self, reason: str = "") -> list[Action]:
        return self._end()

    def upstream_failed(self, reason: str) -> list[Action]:
        return self._end(reset=True)

    def identified(self, conn: Conn) -> None:
        """No effect: this gate emits no records."""

    def policy_changed(self) -> list[Action]:
        """No action: the session itself evaluates connections."""
        return []

    def draining(self) -> list[Action]:
        return []

    def timed_out(self, phase: Phase) -> list[Action]:
        return self._end(reset=True) if phase is self.waiting_for else []

    def _end(self, *, reset: bool = False) -> list[Action]:
        if self._over:
            return []
        self._over = True
        return [Close(reset)]
