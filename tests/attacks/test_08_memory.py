"""Finding 8: connections whose client does not read cost a worker bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

from l7proxy.model.net import HostPort
from tests.unit.proxy.stage import CLIENT, request
from tests.unit.proxy.test_worker import Agent, worker

CONNECTIONS = 1000
EACH = 128 << 10
"""Bytes of worker memory per connection, at most: its part of the buffers (256 MiB / 4) plus the session itself."""


async def test_a_thousand_connections_that_are_not_read_are_bounded_together(tmp_path: Path) -> None:
    agent, link = Agent(tmp_path / "link.sock"), tmp_path / "link.sock"
    server = await asyncio.start_server(_pours, "127.0.0.3", 0, backlog=CONNECTIONS)
    there = HostPort("127.0.0.3", server.sockets[0].getsockname()[1])
    async with agent.server.serving(), worker(link, there) as (process, port):
        await agent.publish()
        before = _resident(process.pid)
        clients = []
        for _ in range(CONNECTIONS):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.bind((CLIENT, 0))
            sock.connect(("127.0.0.1", port))
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # it may be refused already
                sock.send(request())
            clients.append(sock)
            await asyncio.sleep(0)
        await _steady(process.pid)
        assert (_resident(process.pid) - before) / CONNECTIONS < EACH
        for sock in clients:
            sock.close()
    server.close()


async def _pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.set_write_buffer_limits(0)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"4000\r\n%b\r\n" % bytes(0x4000))
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        writer.transport.abort()


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _steady(pid: int) -> None:
    """Worker memory stops growing."""
    last = 0
    while (now := _resident(pid)) > last + (1 << 20):
        last = now
        await asyncio.sleep(0.5)
