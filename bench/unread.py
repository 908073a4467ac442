"""A client that requests much and reads nothing, and its server.

    python -m bench.unread ask HOST PORT COUNT     COUNT connections; `ready` when all have asked or were refused
    python -m bench.unread serve PORT              answers each request with an endless body

Both end with their standard input, or when they are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import sys

REQUEST = b"GET /bulk/1 HTTP/1.1\r\nHost: server\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"4000\r\n%b\r\n" % bytes(0x4000)


def ask(host: str, port: int, count: int) -> None:
    held = []
    for _ in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(10)
        with contextlib.suppress(OSError):  # refused: also a valid limit
            sock.connect((host, port))
            sock.sendall(REQUEST)
        held.append(sock)
    print("ready", flush=True)
    sys.stdin.read()


async def serve(port: int) -> None:
    server = await asyncio.start_server(_pour, port=port, backlog=4096)
    await server.serve_forever()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.set_write_buffer_limits(0)
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        while True:
            writer.write(CHUNK)
            await writer.drain()
    writer.transport.abort()


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1] == "serve":
        asyncio.run(serve(int(sys.argv[2])))
    else:
        ask(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))


if __name__ == "__main__":
    main()
