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
from collections import deque
from time import monotonic_ns, thread_time_ns
from typing import Final, Protocol

from l7proxy.link.fence import Fence
from l7proxy.proxy.server.shares import HALVED, LONG, Share

IN: Final = 1  # select.EPOLLIN; numbers are folded into compiled code
OUT: Final = 4  # EPOLLOUT
BROKEN: Final = 8 | 16  # EPOLLERR, EPOLLHUP: told whether asked for or not
TURN: Final = 500_000
"""Nanoseconds after which a turn ends, with the call that is being made."""
STALL: Final = 500_000_000
"""Nanoseconds without a turn after which a newer picture is read before any socket: the process may have been
stopped."""
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
        self._waiting: dict[Share, deque[Watched]] = {}
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
            self._waiting.setdefault(watched.share, deque()).append(watched)
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
        epoll, all_watched = self._epoll, self._watched
        before = monotonic_ns()
        if epoll is None or self._held or self._behind(before):
            return
        self._cpu = thread_time_ns()
        ready = epoll.poll(0)
        self.crowded = self._pressed or bool(self._waiting)
        self._pressed = False
        if self.crowded:
            self._share_out(ready)
        else:
            end, now = before + self.turn, before
            for descriptor, events in ready:
                watched = all_watched.get(descriptor)
                if watched is None:
                    continue
                if self._must_hold():
                    break
                now = self._tell(watched, events, now)
                if now > end:
                    self._pressed = True
                    break
        self._ended = monotonic_ns()

    def _share_out(self, ready: list[tuple[int, int]]) -> None:
        """A turn in which not all may be served: who used least lately comes first, and of its connections those that
        have begun."""
        sorted_out: dict[Share, list[tuple[int, int, Watched]]] = {share: [] for share in self._waiting}
        for descriptor, events in ready:
            watched = self._watched.get(descriptor)
            if watched is not None:
                sorted_out.setdefault(watched.share, []).append((descriptor, events, watched))
        now = monotonic_ns()
        end = now + self.turn
        for share in sorted(sorted_out, key=lambda one: one.lately(now)):
            now = self._serve(share, sorted_out[share], now, end)
            if now > end:
                self._pressed = True
                break
            if self._held:
                break
        if self._waiting:
            self._poll_again()

    def _serve(self, share: Share, ready: list[tuple[int, int, Watched]], now: int, end: int) -> int:
        """Tell those of one share until the turn ends. The time after that."""
        for descriptor, events, watched in ready:
            if self._watched.get(descriptor) is not watched:
                continue  # it was closed in this turn
            if now > end or self._must_hold():
                return now
            now = self._tell(watched, events, now)
        waiting = self._waiting.get(share, ())
        while waiting and now <= end and not self._must_hold():
            now = self._tell(waiting.popleft(), 0, now)
            if not waiting:
                del self._waiting[share]
        return now

    def _must_hold(self) -> bool:
        """The process may have been stopped anywhere in here."""
        if self.fence.up():
            self.hold()
            return True
        return False

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
