"""Which sockets are ready, by an epoll(7) of the worker's own that the loop watches as one descriptor.

A transport of the loop for each leg would cost more than all else that a short connection needs. Descriptors must not
be closed while `ready` is being told: the number may be another's at once, who would be told of the first one's event.
"""

from __future__ import annotations

import asyncio
import select
from typing import Final, Protocol

IN: Final = 1  # select.EPOLLIN; numbers are folded into compiled code
OUT: Final = 4  # EPOLLOUT
BROKEN: Final = 8 | 16  # EPOLLERR, EPOLLHUP: told whether asked for or not


class Watched(Protocol):
    """Whoever waits for a socket."""

    def ready(self, events: int) -> None:
        """Some of IN, OUT and BROKEN. Told again while it holds. Must not raise."""


class Poller:
    """One watcher for each descriptor."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Watched] = {}
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
        epoll, all_watched = self._epoll, self._watched
        if epoll is None:
            return
        ready = epoll.poll(0)
        self.told = len(ready)
        for descriptor, events in ready:
            watched = all_watched.get(descriptor)
            if watched is not None:
                watched.ready(events)
