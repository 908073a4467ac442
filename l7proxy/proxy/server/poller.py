"""Which sockets are ready, by an epoll(7) of the worker's own that the loop watches as one descriptor.

A transport of the loop for each leg would cost more than all else that a short connection needs. Descriptors must not
be closed while `ready` is being told: the number may be another's at once, who would be told of the first one's event.

Nobody is told of anything while the fence is up (see `link.fence`), nor, after a stall, before a picture that is there
has been read.
"""

from __future__ import annotations

import asyncio
import select
from time import monotonic
from typing import Final, Protocol

from l7proxy.link.fence import Fence

IN: Final = 1  # select.EPOLLIN; numbers are folded into compiled code
OUT: Final = 4  # EPOLLOUT
BROKEN: Final = 8 | 16  # EPOLLERR, EPOLLHUP: told whether asked for or not
STALL: Final = 0.5
"""Seconds without a turn after which a newer picture is read before any socket: the process may have been stopped."""
WAIT: Final = 1.0
"""Seconds that such a picture is waited for: an agent may die before it has sent what it published."""


class Watched(Protocol):
    """Whoever waits for a socket."""

    def ready(self, events: int) -> None:
        """Some of IN, OUT and BROKEN. Told again while it holds. Must not raise."""


class Poller:
    """One watcher for each descriptor."""

    def __init__(self) -> None:
        self.fence = Fence()
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Watched] = {}
        self._held = False
        self._ended = monotonic()
        self.told = 0
        """How many are told in this turn of the loop."""
        self.loop = asyncio.get_running_loop()

    def watch(self, descriptor: int, events: int, watched: Watched) -> None:
        """From now on, by this one. OSError when no more can be watched."""
        epoll = self._epoll or self._open()
        if descriptor in self._watched:
            epoll.modify(descriptor, events)
        else:
            epoll.register(descriptor, events)
        self._watched[descriptor] = watched

    def forget(self, descriptor: int) -> None:
        """No more events; needed before its close, too."""
        if self._watched.pop(descriptor, None) is not None and self._epoll is not None:
            self._epoll.unregister(descriptor)

    def forget_closing(self, descriptor: int) -> None:
        """As `forget`, by who closes it before the loop polls again: the kernel forgets what is closed."""
        self._watched.pop(descriptor, None)

    def hold(self) -> None:
        """Tell nobody of anything until `go_on`."""
        if not self._held and self._epoll is not None:
            self._held = True
            self.loop.remove_reader(self._epoll.fileno())

    def go_on(self) -> None:
        """Tell again. Where the fence is (still) up, the next turn holds again."""
        self._ended = monotonic()
        if self._held and self._epoll is not None:
            self._held = False
            self.loop.add_reader(self._epoll.fileno(), self._poll)

    def close(self) -> None:
        if self._epoll is not None:
            self.loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        self._watched.clear()

    def _open(self) -> select.epoll:
        self._epoll = epoll = select.epoll()
        self.loop.add_reader(epoll.fileno(), self._poll)
        return epoll

    def _poll(self) -> None:
        epoll, all_watched, fence = self._epoll, self._watched, self.fence
        if epoll is None or self._behind():
            return
        ready = epoll.poll(0)
        self.told = len(ready)
        for descriptor, events in ready:
            watched = all_watched.get(descriptor)
            if watched is not None:
                if fence.up():  # the process may have been stopped anywhere in here
                    self.hold()
                    break
                watched.ready(events)
        self._ended = monotonic()

    def _behind(self) -> bool:
        """A picture must be read first: this is no turn."""
        if self.fence.up():
            self.hold()
            return True
        if monotonic() - self._ended > STALL and self.fence.behind():
            self.hold()
            self.loop.call_later(WAIT, self.go_on)
            return True
        return False
