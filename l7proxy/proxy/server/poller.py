"""Which sockets are ready, by an epoll(7) of the worker's own that the loop watches as one descriptor, and who of those
that wait for them comes first.

A transport of the loop for each leg would cost more than all else that a short connection needs. Descriptors must not
be closed while `ready` is being told: the number may be another's at once, who would be told of the first one's event.

A turn is short (TURN): then the loop has its link, its timers and its other tasks. What was not served is ready in the
next turn again; then the order is by share, who used least lately first. So a client that asks seldom waits for one
turn and one call, whatever others ask for; who has the worker alone has all of it.

Nobody is told of anything while the fence is up (see `link.fence`), nor, after a stall, before a picture that is there
has been read.
"""

from __future__ import annotations

import asyncio
import select
from time import monotonic_ns, thread_time_ns
from typing import Final, Protocol

from l7proxy.link.fence import Fence
from l7proxy.proxy.server.shares import HALVED, LONG, Share

IN: Final = 1  # select.EPOLLIN; numbers are folded into compiled code
OUT: Final = 4  # EPOLLOUT
BROKEN: Final = 8 | 16  # EPOLLERR, EPOLLHUP: told whether asked for or not
TURN: Final = 2_000_000
"""Nanoseconds after which a turn ends, with the call that is being made."""
STALL: Final = 500_000_000
"""Nanoseconds without a turn after which a newer picture is read before any socket: the process may have been
stopped."""
BEGINS: Final = -1
"""In the place of a descriptor: what waits to begin."""
WAIT: Final = 1.0
"""Seconds that such a picture is waited for: an agent may die before it has sent what it published."""


class Watched(Protocol):
    """Whoever waits for a socket."""

    share: Share
    """In whose name it does what it does."""

    def ready(self, events: int) -> None:
        """Some of IN, OUT and BROKEN. Told again while it holds. Must not raise."""


class Poller:
    """One watcher for each descriptor."""

    def __init__(self) -> None:
        self.fence = Fence()
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Watched] = {}
        self._waiting: dict[Watched, None] = {}
        self._held = False
        self._again = False
        self._ended = monotonic_ns()
        self._cpu = 0
        self._pressed = False
        self.crowded = False
        """There is more to do in this turn than it has time for, as in the one before."""
        self.turn = TURN
        self.wait = WAIT
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

    def begin(self, watched: Watched) -> None:
        """Tell it once, of no events: now, or when it is its share's turn."""
        if self.crowded:
            self._waiting[watched] = None
        else:
            watched.ready(0)

    def hold(self) -> None:
        """Tell nobody of anything until `go_on`."""
        if not self._held and self._epoll is not None:
            self._held = True
            self.loop.remove_reader(self._epoll.fileno())

    def go_on(self) -> None:
        """Tell again. Where the fence is (still) up, the next turn holds again."""
        self._ended = monotonic_ns()
        if self._held and self._epoll is not None:
            self._held = False
            self.loop.add_reader(self._epoll.fileno(), self._poll)
            self._poll_again()

    def close(self) -> None:
        if self._epoll is not None:
            self.loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        self._watched.clear()
        self._waiting.clear()

    def _open(self) -> select.epoll:
        self._epoll = epoll = select.epoll()
        self.loop.add_reader(epoll.fileno(), self._poll)
        return epoll

    def _poll(self) -> None:
        epoll, all_watched, fence = self._epoll, self._watched, self.fence
        before = monotonic_ns()
        if epoll is None or self._held or self._behind(before):
            return
        self._cpu = thread_time_ns()
        ready = epoll.poll(0)
        self.crowded = self._pressed or bool(self._waiting)
        self._pressed = False
        if self.crowded:
            self._share_out(ready, before)
        else:
            end, now = before + self.turn, before
            for descriptor, events in ready:
                watched = all_watched.get(descriptor)
                if watched is None:
                    continue
                if fence.up():  # the process may have been stopped anywhere in here
                    self.hold()
                    break
                now = self._tell(watched, events, now)
                if now > end:
                    self._pressed = True
                    break
        self._ended = monotonic_ns()

    def _share_out(self, ready: list[tuple[int, int]], now: int) -> None:
        """A turn in which not all may be served: who used least lately comes first."""
        end, order = now + self.turn, list[tuple[int, int, int, int, Watched]]()
        for descriptor, events in ready:
            watched = self._watched.get(descriptor)
            if watched is not None:
                order.append((watched.share.lately(now), len(order), descriptor, events, watched))
        for watched in self._waiting:
            order.append((watched.share.lately(now), len(order), BEGINS, 0, watched))
        order.sort()
        for _, _, descriptor, events, watched in order:
            if self.fence.up():
                self.hold()
                break
            if descriptor == BEGINS:
                del self._waiting[watched]
            elif self._watched.get(descriptor) is not watched:
                continue  # it was closed in this turn
            now = self._tell(watched, events, now)
            if now > end:
                self._pressed = True
                break
        if self._waiting:
            self._poll_again()

    def _poll_again(self) -> None:
        """In the loop's next turn, whether or not a socket is ready then."""
        if not self._again:
            self._again = True
            self.loop.call_soon(self._poll_now)

    def _poll_now(self) -> None:
        self._again = False
        self._poll()

    def _behind(self, now: int) -> bool:
        """A picture must be read first: this is no turn."""
        if self.fence.up():
            self.hold()
            return True
        if now - self._ended > STALL and self.fence.behind():
            self.hold()
            self.loop.call_later(self.wait, self.go_on)
            return True
        return False

    def _tell(self, watched: Watched, events: int, before: int) -> int:
        """Tell it, at its share's cost. The time when that is done."""
        watched.ready(events)
        after = monotonic_ns()
        share = watched.share
        if after >> HALVED != share.period:
            share.age(after)
        took = after - before
        if took > LONG:  # or the process had no CPU meanwhile
            took = min(took, thread_time_ns() - self._cpu)
        share.spent(took)
        return after
