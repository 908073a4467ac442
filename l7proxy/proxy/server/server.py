"""The serving half of a worker: listeners, sessions, their clock, and the way out.

Ports are bound at once, so that the operator hears of a problem at once; nobody is accepted before the first picture:
until then the kernel refuses what it would have steered here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from l7proxy.link.messages import Load, Picture
from l7proxy.model.net import HostPort, canonical
from l7proxy.proxy.server.listener import BACKLOG
from l7proxy.proxy.server.session import Session
from l7proxy.proxy.server.surroundings import Surroundings
from l7proxy.proxy.wheel import RESOLUTION

log = logging.getLogger(__name__)

CUT_SECONDS: Final = 1.0
"""For the loop to close what was cut."""


class ProxyServer:
    """`bound` are what the steering's `listen` gave."""

    def __init__(self, around: Surroundings, bound: Sequence[socket.socket]) -> None:
        self._around = around
        self._bound = bound
        self._servers: list[asyncio.Server] = []
        self.addresses = [HostPort(canonical(name[0]), name[1]) for name in (s.getsockname() for s in self._bound)]
        around.own.update(self.addresses)

    @property
    def listening(self) -> bool:
        return bool(self._servers)

    def load(self) -> Load:
        counts = self._around.counts
        return Load(connections=len(self._around.board), requests=counts.requests, denied=counts.denied)

    async def publish(self, picture: Picture) -> tuple[str, ...]:
        """Put the picture in force; the first one opens the doors. Returns what was wrong in it."""
        problems = await self._around.board.publish(picture)
        if not self._servers and not self._around.draining:
            await self._open()
        return problems

    async def tick(self) -> None:
        """Advance the wheel for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(RESOLUTION)
            self._around.wheel.advance(loop.time())

    async def drain(self, seconds: float) -> None:
        """Accept nobody, let sessions end for `seconds`, then cut them."""
        self._around.draining = True
        self._shut()
        board = self._around.board
        for session in board:
            session.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await board.empty()
                return
        log.warning("%d connections did not end within %g s: cut", len(board), seconds)
        for session in board:
            session.cut("the proxy is stopping")
        with suppress(TimeoutError):
            async with asyncio.timeout(CUT_SECONDS):
                await board.empty()

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        for sock in self._bound:
            self._servers.append(
                await loop.create_server(lambda: Session(self._around).protocol, sock=sock, backlog=BACKLOG)
            )
        log.info("serving on %s", ", ".join(map(str, self.addresses)))

    def _shut(self) -> None:
        for server in self._servers:
            server.close()
        for sock in self._bound:
            sock.close()
