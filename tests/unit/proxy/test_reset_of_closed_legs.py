"""A leg may be reset at any moment, also between the close of its descriptor and the loop's word that it is lost."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

from l7proxy.proxy.server.upstream import reset_on_close


class Told(asyncio.Protocol):
    """Notes that the loss was told."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


async def between_close_and_loss(act: str) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        transport, told = await loop.create_connection(Told, "127.0.0.1", server.getsockname()[1])
        transport.get_extra_info("socket").getsockname()
        getattr(transport, act)()
        try:
            for _ in range(5):
                reset_on_close(transport)
                transport.abort()
                await asyncio.sleep(0)
        finally:
            async with asyncio.timeout(5):
                await told.lost.wait()
        reset_on_close(transport)


@pytest.mark.parametrize("act", ["close", "abort"])
def test_resetting_what_is_closed_already_is_no_error(act: str) -> None:
    uvloop.run(between_close_and_loss(act))
