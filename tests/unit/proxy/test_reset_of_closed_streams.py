"""A leg may be reset at any moment, also between its close and the word that it is lost."""

from __future__ import annotations

import asyncio
import socket

import pytest

from l7proxy.proxy.server.poller import Poller
from l7proxy.proxy.server.socket_stream import Leg


class Party:
    """Counts how often the loss was told."""

    def __init__(self) -> None:
        self.losses = 0

    def finished(self, leg: Leg) -> None:
        """The test's own end stays open."""

    def lost(self, leg: Leg, error: Exception | None) -> None:
        self.losses += 1

    def crowded(self, leg: Leg, *, full: bool) -> None:
        """Nothing is written."""

    def holding(self) -> None: ...


@pytest.mark.parametrize("act", ["close", "reset"])
async def test_resetting_what_is_closed_already_is_no_error(act: str) -> None:
    party, poller = Party(), Poller()
    leg = Leg(party, lambda data: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.setblocking(False)
    with theirs:
        leg.open(ours, poller)
        getattr(leg, act)()
        for _ in range(5):
            leg.reset()
            await asyncio.sleep(0)
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
    assert leg.gone
    assert party.losses == 1
    assert ours.fileno() == -1
    poller.close()
