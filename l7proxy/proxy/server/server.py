"""The serving part of a worker: accepts connections, makes them sessions, advances their timers, drains them.

Ports are bound at once, so that the operator sees an error at once. No connection is accepted before the first policy
snapshot: until then the kernel refuses the connections that it would redirect here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic_ns
from typing import Final

from l7proxy.link.messages import PolicySnapshot
from l7proxy.model.net import HostPort
from l7proxy.proxy.policy_store import PolicyStore, refusal
from l7proxy.proxy.server.context import WorkerContext
from l7proxy.proxy.server.listener import BACKLOG
from l7proxy.proxy.server.poller import IN
from l7proxy.proxy.server.session import Session, named, record_refusal
from l7proxy.proxy.server.shares import Share
from l7proxy.proxy.server.socket_stream import NO_LINGER
from l7proxy.proxy.server.timer_wheel import RESOLUTION

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 5.0
"""While draining: time for a client to send its next request, and to be told by its response that it is the last."""
CUT_SECONDS: Final = 1.0
"""Time for the loop to close the connections that were cut."""


PAUSE_SECONDS: Final = 0.5
"""Delay after a failed accept: waiting connections stay in the kernel's queue."""


ADMITTING: Final = 4
"""Under overload, at most 1/ADMITTING of a turn goes to accepting connections. Each takes some ten microseconds;
connections that arrive faster fill the kernel's queue."""


class ProxyServer:
    """`bound` are the sockets from the steering's `listen`. `on_open` is called once connections are accepted."""

    def __init__(
        self, ctx: WorkerContext, bound: Sequence[socket.socket], *, on_open: Callable[[], None] = lambda: None
    ) -> None:
        self._ctx = ctx
        self._on_open = on_open
        self._bound = bound
        self._doors: list[_Acceptor] = []
        self._is_shut = False
        self.addresses = [named(sock.getsockname()) for sock in self._bound]
        ctx.own.update(self.addresses)

    @property
    def listening(self) -> bool:
        return bool(self._doors)

    async def publish(self, snapshot: PolicySnapshot) -> tuple[str, ...]:
        """Make the policy snapshot active; the first one starts listening. Returns the problems found in it."""
        ctx = self._ctx
        problems = await ctx.policy_store.publish(snapshot)
        ctx.poller.go_on()
        if not self._doors and not self._ctx.draining:
            self._open()
        return problems

    async def tick(self) -> None:
        """Advance the timer wheel until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(RESOLUTION)
            self._ctx.timers.advance(loop.time())
            self._ctx.memory.look(loop.time())

    async def drain(self, seconds: float) -> None:
        """Stop accepting, give sessions `seconds` to end, then cut them.

        An idle connection first stays: a request may be on its way, and its response says that it is the last one.
        """
        ctx, policy_store = self._ctx, self._ctx.policy_store
        ctx.draining = True
        self._shut()
        for session in policy_store:
            session.drain()
        idle = min(IDLE_SECONDS, seconds / 2)
        if await _over(policy_store, idle):
            return
        ctx.idle_ends = True
        for session in policy_store:
            session.end_idle()
        if await _over(policy_store, seconds - idle):
            return
        log.warning("%d connections did not end within %g s: cut", len(policy_store), seconds)
        for session in policy_store:
            session.cut("the proxy is stopping")
        await _over(policy_store, CUT_SECONDS)

    def _open(self) -> None:
        for sock in self._bound:
            sock.listen(BACKLOG)
            self._doors.append(_Acceptor(self._ctx, sock))
        log.info("serving on %s", ", ".join(map(str, self.addresses)))
        self._on_open()

    def _shut(self) -> None:
        """Stop accepting. Once only: then the descriptors may be those of other sockets."""
        if self._is_shut:
            return
        self._is_shut = True
        for door in self._doors:
            door.shut()
        for sock in self._bound:
            sock.close()


async def _over(policy_store: PolicyStore, seconds: float) -> bool:
    """Wait until no session is left. False after `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await policy_store.empty()
            return True
    return False


class _Acceptor:
    """Accepts from one listener: each event makes one connection a session. Under overload many are accepted at once,
    and become sessions when their client's share is served, so that no client waits behind the queued connections of
    another. Accepting costs little, and comes first.

    The standard library's `accept` builds enum members for family and type on each call; its `_accept` is only the
    system call.
    """

    def __init__(self, ctx: WorkerContext, sock: socket.socket) -> None:
        self._ctx = ctx
        self._sock = sock
        self.share = Share()
        self._descriptor = sock.fileno()
        self._family = sock.family
        self._again: asyncio.TimerHandle | None = None
        self._watch()

    def ready(self, events: int) -> None:
        self.share.used = 0
        poller = self._ctx.poller
        end = monotonic_ns() + poller.turn // ADMITTING
        while self._admit() and poller.congested and monotonic_ns() < end:
            pass

    def _admit(self) -> bool:
        """Accept one connection. False: stop for now."""
        try:
            number, name = self._sock._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, ConnectionAbortedError):
            return False  # the queue is empty, or the client has already reset the connection
        except OSError as error:
            log.error("cannot accept: %s", error.strerror or error)
            # Else the event repeats at once. Not `forget`: registering again may fail, changing the events cannot.
            self._ctx.poller.watch(self._descriptor, 0, self)
            self._again = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._watch)
            return False
        sock, source = socket.socket(self._family, socket.SOCK_STREAM, 0, number), named(name)
        share = self._share_of(source)
        if share.sessions + share.arriving >= max(1, self._ctx.limit // 2):
            self._refuse(sock, source)
        else:
            sock.setblocking(False)
            self._ctx.poller.begin(_Accepted(self._ctx, sock, source, share))
        return True

    def _share_of(self, source: HostPort) -> Share:
        index = self._ctx.policy_store.index
        return self._ctx.shares.of(index.owner(source.address) if index is not None else source.address)

    def _refuse(self, sock: socket.socket, source: HostPort) -> None:
        """Refuse at once, cheaper than with a session: a client that opens connections faster than the worker can
        refuse them fills the kernel's queue and excludes others."""
        ctx = self._ctx
        destination = ctx.steering.destination(named(sock.getsockname()))
        ctx.counts.denied += 1
        ctx.counts.refused_share += 1
        why = f"this client has half of the {ctx.limit} connections that this worker can carry"
        record_refusal(ctx, source, destination, refusal(why))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        sock.close()

    def shut(self) -> None:
        self._ctx.poller.forget(self._descriptor)
        if self._again is not None:
            self._again.cancel()

    def _watch(self) -> None:
        self._ctx.poller.watch(self._descriptor, IN, self)


class _Accepted:
    """An accepted connection that is not a session yet."""

    def __init__(self, ctx: WorkerContext, sock: socket.socket, source: HostPort, share: Share) -> None:
        self.share = share
        share.arriving += 1
        self._ctx = ctx
        self._sock = sock
        self._source = source

    def ready(self, events: int) -> None:
        self.share.arriving -= 1
        Session(self._ctx, self.share).accepted(self._sock, self._source)
