"""A socket stream may be reset at any moment, also between its close and the `lost` callback."""

from __future__ import annotations

import asyncio
import socket

import pytest

from l7proxy.proxy.server.poller import Poller
from l7proxy.proxy.server.socket_stream import SocketStream


class Party:
    """Counts the `lost` callbacks."""

    def __init__(self) -> None:
        self.losses = 0

    def finished(self, stream: SocketStream) -> None:
        """The test's own end stays open."""

    def lost(self, stream: SocketStream, error: Exception | None) -> None:
        self.losses += 1

    def congested(self, stream: SocketStream, *, full: bool) -> None:
        """Nothing is written."""

    def holding(self) -> None: ...


@pytest.mark.parametrize("act", ["close", "reset"])
async def test_resetting_what_is_closed_already_is_no_error(act: str) -> None:
    party, poller = Party(), Poller()
    stream = SocketStream(party, lambda data: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.setblocking(False)
    with theirs:
        stream.open(ours, poller)
        getattr(stream, act)()
        for _ in range(5):
            stream.reset()
            await asyncio.sleep(0)
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
    assert stream.gone
    assert party.losses == 1
    assert ours.fileno() == -1
    poller.close()
