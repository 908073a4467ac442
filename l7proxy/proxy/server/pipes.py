"""What splicing needs of the kernel: pipes, so many and no more, and to be told which sockets are ready for them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from l7proxy.proxy.server.poller import BROKEN, IN, OUT, Poller
from l7proxy.proxy.server.shares import Share

RUNS: Final = 64
"""At a time, of one worker. The bytes of further ones go the ordinary way."""
KEPT: Final = 8
"""Empty pipes kept for the next runs."""
DESCRIPTORS: Final = 2 * (RUNS + KEPT) + 1
"""That all of them may need."""
PIPE: Final = 512 << 10
"""Bytes: what an ordinary leg may hold, too, since leftovers come back to it; more is no faster. Where the kernel does
not allow so much (pipe(7), pipe-user-pages-soft) it stays at 64 KiB."""
AT_ONCE: Final = 8
"""Runs that move bytes in one call: the others are next."""
PATIENCE: Final = 0.02
"""Seconds, at most twice over, that bytes in the middle of a body wait for others."""


@dataclass(frozen=True, slots=True)
class Pipe:
    read: int
    write: int
    size: int

    def close(self) -> None:
        os.close(self.read)
        os.close(self.write)


class Pipes:
    """The pipes of one worker, `limit` of them in use at most, and what tells when sockets are ready for them."""

    def __init__(self, poller: Poller, limit: int = RUNS) -> None:
        self._limit = limit
        self._kept: list[Pipe] = []
        self.used = 0
        self.readiness = PipePoller(poller)

    def take(self) -> Pipe | None:
        """An empty pipe; None when all are in use or the descriptors have run out."""
        if self.used >= self._limit:
            return None
        try:
            self.readiness.open()
            pipe = self._kept.pop() if self._kept else _make()
        except OSError:
            return None
        self.used += 1
        return pipe

    def give(self, pipe: Pipe, *, empty: bool) -> None:
        """Back from a run. One with leftovers is closed: they would be the next connection's."""
        self.used -= 1
        if empty and len(self._kept) < KEPT:
            self._kept.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        while self._kept:
            self._kept.pop().close()
        self.readiness.close()


class ReadCoalescer:
    """Lets a socket's bytes come together before it counts as ready: a wakeup costs much the same for few and for many.

    Only while they keep coming: PATIENCE after nobody asked for more any byte counts again, until somebody does.
    """

    __slots__ = ("_asked", "_count", "_low_water", "_timer")

    def __init__(self, low_water: Callable[[int], None]) -> None:
        """`low_water` tells the kernel how many bytes make the socket ready (1: as ever)."""
        self._low_water = low_water
        self._count = 1
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, count: int) -> None:
        """Be ready when so many are there; the kernel says so earlier at the end, or when its buffer is full."""
        self._asked = True
        self._set(count)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._look)

    def end(self) -> None:
        """As ever from now on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._set(1)

    def _look(self) -> None:
        self._timer = None
        if self._asked:
            self._asked = False
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._look)
        else:
            self._set(1)

    def _set(self, count: int) -> None:
        if count != self._count:
            self._low_water(count)
            self._count = count


class PipePoller:
    """Which sockets can be read or written, by an epoll(7) of our own that the poller watches as one descriptor.

    The poller knows one watcher for each descriptor, its leg; and uvloop's way of watching ends without a word when the
    connection breaks. Here an error counts as ready: the next splice(2) says what it is.
    """

    def __init__(self, poller: Poller) -> None:
        self._epoll: select.epoll | None = None
        self._poller = poller
        self.share = Share()
        """What is spliced has one of its own, all of it together."""
        self._ready: dict[tuple[int, int], Callable[[], None]] = {}

    def watch(self, descriptor: int, events: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever it can be read (EPOLLIN) or written (EPOLLOUT), until it is forgotten."""
        before = self._events(descriptor)
        epoll = self.open()
        if before:
            epoll.modify(descriptor, before | events)
        else:
            epoll.register(descriptor, events)
        self._ready[descriptor, events] = ready

    def forget(self, descriptor: int, events: int) -> None:
        """Before the descriptor is closed: its number may be another's next."""
        if self._ready.pop((descriptor, events), None) is None:
            return  # it could not be watched
        rest, epoll = self._events(descriptor), self.open()
        if rest:
            epoll.modify(descriptor, rest)
        else:
            epoll.unregister(descriptor)

    def close(self) -> None:
        if self._epoll is not None:
            self._poller.forget(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _events(self, descriptor: int) -> int:
        return sum(events for events in (IN, OUT) if (descriptor, events) in self._ready)

    def open(self) -> select.epoll:
        """OSError when there is no descriptor left."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._poller.watch(self._epoll.fileno(), IN, self)
        return self._epoll

    def ready(self, events: int) -> None:
        """What the poller tells: some of ours are ready."""
        if self._epoll is None:
            return
        for descriptor, seen in self._epoll.poll(0, AT_ONCE):
            if self._poller.fence.up():
                return
            for events in (OUT, IN):
                ready = self._ready.get((descriptor, events)) if seen & (events | BROKEN) else None
                if ready is not None:
                    ready()


def _make() -> Pipe:
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    size = 1 << 16
    with suppress(OSError):
        size = fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE)
    return Pipe(read, write, size)
