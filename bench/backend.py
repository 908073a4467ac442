"""The cheapest HTTP/1.1 server, so that only the proxy is measured: python -m bench.backend PORT"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\n\r\nHello, world\n"


class Server(asyncio.Protocol):
    """Answers each request head; requests of the load client have no body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports are not subclasses of asyncio's
        self.held = b""

    def data_received(self, data: bytes) -> None:
        held = self.held + data if self.held else data
        heads = held.count(b"\r\n\r\n")
        self.held = b"" if held.endswith(b"\r\n\r\n") else held.rpartition(b"\r\n\r\n")[2]
        if heads:
            self.transport.write(RESPONSE * heads)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, None, port, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
