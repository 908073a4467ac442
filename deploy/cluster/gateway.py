"""Makes the API server reachable from the host at 127.0.0.1, without any change to the host's network.

A socket stays in the network namespace it was made in. So this process runs on the control machine, and is given a
listening socket of the host: it accepts there, and connects here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import Final

from deploy.cluster import machine
from deploy.cluster.plan import API_PORT, Cluster

PROGRAM: Final = "gateway"
_CHUNK: Final = 1 << 16


def listen(port: int = 0) -> socket.socket:
    """A listening socket at 127.0.0.1 of this network namespace; port 0: any free one."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener


def start(cluster: Cluster, port: int = 0) -> int:
    """Start the process, and return its port on the host."""
    with listen(port) as listener:
        command = [sys.executable, "-P", "-m", __name__, str(listener.fileno()), cluster.control.addresses[0]]
        machine.start(cluster.control, PROGRAM, command, keep=(listener.fileno(),))
        return int(listener.getsockname()[1])


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
    try:
        from_server, to_server = await asyncio.open_connection(address, API_PORT)
    except OSError:
        writer.transport.abort()
        return
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_copy(reader, to_server), name="request")
            both.create_task(_copy(from_server, writer), name="response")
    finally:
        to_server.close()
        writer.close()


async def serve(listener: socket.socket, address: str) -> None:
    server = await asyncio.start_server(lambda reader, writer: _forward(reader, writer, address), sock=listener)
    await server.serve_forever()


def main() -> None:
    descriptor, address = sys.argv[1:]
    asyncio.run(serve(socket.socket(fileno=int(descriptor)), address))


if __name__ == "__main__":
    main()
