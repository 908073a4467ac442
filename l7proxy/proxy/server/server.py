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
from time import monotonic_ns
from typing import Final

from l7proxy.link.messages import Load, Picture
from l7proxy.model.net import HostPort
from l7proxy.proxy.policy_store import refusal
from l7proxy.proxy.server.context import Surroundings
from l7proxy.proxy.server.listener import BACKLOG
from l7proxy.proxy.server.poller import IN
from l7proxy.proxy.server.session import Session, named, record_refusal
from l7proxy.proxy.server.shares import Share
from l7proxy.proxy.server.socket_stream import NO_LINGER
from l7proxy.proxy.server.timer_wheel import RESOLUTION

log = logging.getLogger(__name__)

CUT_SECONDS: Final = 1.0
"""For the loop to close what was cut."""


PAUSE_SECONDS: Final = 0.5
"""Before another try when nobody can be accepted: those who wait stay in the kernel's queue."""


ADMITTING: Final = 4
"""This part of a turn, at most, is for taking connections from the kernel's queue, while there is more to do than a
turn has time for. One takes some ten microseconds: what comes faster fills that queue."""


class ProxyServer:
    """`bound` are what the steering's `listen` gave."""

    def __init__(self, around: Surroundings, bound: Sequence[socket.socket]) -> None:
        self._around = around
        self._bound = bound
        self._doors: list[_Door] = []
        self.addresses = [named(sock.getsockname()) for sock in self._bound]
        around.own.update(self.addresses)

    @property
    def listening(self) -> bool:
        return bool(self._doors)

    def load(self) -> Load:
        counts, memory = self._around.counts, self._around.memory
        return Load(len(self._around.board), counts.requests, counts.denied, memory.held, memory.refused, memory.ended)

    async def publish(self, picture: Picture) -> tuple[str, ...]:
        """Put the picture in force; the first one opens the doors. Returns what was wrong in it."""
        around = self._around
        if around.board.fence.up():
            around.poller.hold()  # until every session has been judged anew
        problems = await around.board.publish(picture)
        around.poller.go_on()
        if not self._doors and not self._around.draining:
            self._open()
        return problems

    async def tick(self) -> None:
        """Advance the wheel for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(RESOLUTION)
            self._around.wheel.advance(loop.time())
            self._around.memory.look(loop.time())

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

    def _open(self) -> None:
        for sock in self._bound:
            sock.listen(BACKLOG)
            self._doors.append(_Door(self._around, sock))
        log.info("serving on %s", ", ".join(map(str, self.addresses)))

    def _shut(self) -> None:
        for door in self._doors:
            door.shut()
        for sock in self._bound:
            sock.close()


class _Door:
    """A listener at work: each time the poller tells of it, a connection becomes a session. While the worker has more
    to do than it can, many are taken at once, and become sessions when it is their client's turn: so nobody waits
    behind those that another has put in the queue. Taking them costs little, and comes first.

    The standard library's `accept` makes enumerations of the listener's family and type each time; its `_accept` is the
    system call.
    """

    def __init__(self, around: Surroundings, sock: socket.socket) -> None:
        self._around = around
        self._sock = sock
        self.share = Share()
        self._descriptor = sock.fileno()
        self._family = sock.family
        self._again: asyncio.TimerHandle | None = None
        self._watch()

    def ready(self, events: int) -> None:
        self.share.used = 0
        poller = self._around.poller
        end = monotonic_ns() + poller.turn // ADMITTING
        while self._admit() and poller.crowded and monotonic_ns() < end:
            pass

    def _admit(self) -> bool:
        """One connection. False: there is no other now."""
        try:
            number, name = self._sock._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, ConnectionAbortedError):
            return False  # all are in, or a client's reset was faster
        except OSError as error:
            log.error("cannot accept: %s", error.strerror or error)
            # Else it would be told again at once. Not forgotten: to be registered anew may fail, this cannot.
            self._around.poller.watch(self._descriptor, 0, self)
            self._again = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._watch)
            return False
        sock, source = socket.socket(self._family, socket.SOCK_STREAM, 0, number), named(name)
        share = self._share_of(source)
        if share.sessions + share.arriving >= max(1, self._around.limit // 2):
            self._refuse(sock, source)
        else:
            sock.setblocking(False)
            self._around.poller.begin(_Arrival(self._around, sock, source, share))
        return True

    def _share_of(self, source: HostPort) -> Share:
        index = self._around.board.index
        return self._around.shares.of(index.owner(source.address) if index is not None else source.address)

    def _refuse(self, sock: socket.socket, source: HostPort) -> None:
        """At once, and for less than a session costs: whoever opens more than the worker can refuse fills the kernel's
        queue, and shuts others out."""
        around = self._around
        destination = around.steering.destination(named(sock.getsockname()))
        around.counts.denied += 1
        why = f"this client has half of the {around.limit} connections that this worker can carry"
        record_refusal(around, source, destination, refusal(why))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        sock.close()

    def shut(self) -> None:
        self._around.poller.forget(self._descriptor)
        if self._again is not None:
            self._again.cancel()

    def _watch(self) -> None:
        self._around.poller.watch(self._descriptor, IN, self)


class _Arrival:
    """A client's connection that has not become a session yet."""

    def __init__(self, around: Surroundings, sock: socket.socket, source: HostPort, share: Share) -> None:
        self.share = share
        share.arriving += 1
        self._around = around
        self._sock = sock
        self._source = source

    def ready(self, events: int) -> None:
        self.share.arriving -= 1
        Session(self._around, self.share).accepted(self._sock, self._source)
