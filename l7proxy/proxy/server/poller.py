"""Finds ready sockets with the worker's own epoll(7), which the event loop watches as one descriptor, and decides the
order in which they are served.

A transport of the event loop for each socket would cost more than all the rest of a short connection. A descriptor must
not be closed inside `ready`: its number may be reused at once, and the new owner would get the old one's event.

A turn is short (TURN); then the loop runs its link, timers and other tasks. Sockets not served are ready again in the
next turn, which goes by share: the share that used least lately comes first. So a client with few requests waits for
at most one turn and one call, whatever the load of others; a client that is alone gets the whole worker.

No events are delivered while the fence is up (see `link.fence`), nor, after a stall, before a published policy snapshot
has been read. What would read or write a socket in a later turn of the loop waits likewise (`soon`), as do timers.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Callable
from time import monotonic_ns, thread_time_ns
from typing import Final, Protocol

from l7proxy.link.fence import Fence
from l7proxy.proxy.server.shares import HALVED, LONG, Share

IN: Final = 1  # select.EPOLLIN; compiled code inlines plain numbers
OUT: Final = 4  # EPOLLOUT
BROKEN: Final = 8 | 16  # EPOLLERR, EPOLLHUP: always reported
TURN: Final = 500_000
"""Nanoseconds after which a turn ends; a running call is finished first."""
STALL: Final = 500_000_000
"""Nanoseconds without a turn after which a newer policy snapshot is read before any socket: the process may have been
stopped."""
WAIT: Final = 1.0
"""Most seconds to wait for that snapshot: an agent may die between publishing and sending it."""


class Watched(Protocol):
    """An object that waits for a socket."""

    share: Share
    """The share that pays for its calls."""

    def ready(self, events: int) -> None:
        """`events` are some of IN, OUT and BROKEN. Level-triggered. Must not raise."""


class Poller:
    """An epoll(7) with one watcher for each descriptor."""

    def __init__(self) -> None:
        self.fence = Fence()
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Watched] = {}
        self._waiting: dict[Share, deque[Watched]] = {}
        self._held = False
        self._delayed: list[Callable[[], None]] = []
        self._again = False
        self._ended = monotonic_ns()
        self._cpu = 0
        self._pressed = False
        self.congested = False
        """Overloaded: the last turn ended before all ready sockets were served, or some still wait for their turn."""
        self.turn = TURN
        self.wait = WAIT
        self.loop = asyncio.get_running_loop()

    def watch(self, descriptor: int, events: int, watched: Watched) -> None:
        """Deliver `events` to `watched` from now on. OSError when no more descriptors can be watched."""
        epoll = self._epoll or self._open()
        if descriptor in self._watched:
            epoll.modify(descriptor, events)
        else:
            epoll.register(descriptor, events)
        self._watched[descriptor] = watched

    def forget(self, descriptor: int) -> None:
        """Deliver no more events. Also required before the descriptor is closed."""
        if self._watched.pop(descriptor, None) is not None and self._epoll is not None:
            self._epoll.unregister(descriptor)

    def forget_closing(self, descriptor: int) -> None:
        """Like `forget`, if the caller closes it before the next poll: the kernel removes closed descriptors."""
        self._watched.pop(descriptor, None)

    def begin(self, watched: Watched) -> None:
        """Call `ready` once, without events: now, or when its share is served."""
        if self.congested:
            self._waiting.setdefault(watched.share, deque()).append(watched)
        else:
            watched.ready(0)

    def soon(self, call: Callable[[], None]) -> None:
        """Call it in the loop's next turn, or once events are delivered again."""
        self.loop.call_soon(self._call, call)

    def hold(self) -> None:
        """Deliver no events until `go_on`."""
        if not self._held and self._epoll is not None:
            self._held = True
            self.loop.remove_reader(self._epoll.fileno())

    def go_on(self) -> None:
        """Deliver events again. If the fence is still up, the next turn calls `hold` again."""
        self._ended = monotonic_ns()
        delayed, self._delayed = self._delayed, []
        for call in delayed:
            self.soon(call)  # before the next poll: see `forget_closing`
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
        self._delayed.clear()

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
        self.congested = self._pressed or bool(self._waiting)
        self._pressed = False
        if self.congested:
            self._share_out(ready)
        else:
            end, now = before + self.turn, before
            for descriptor, events in ready:
                watched = all_watched.get(descriptor)
                if watched is None:
                    continue
                if self.must_hold():
                    break
                now = self._tell(watched, events, now)
                if now > end:
                    self._pressed = True
                    break
        self._ended = monotonic_ns()

    def _share_out(self, ready: list[tuple[int, int]]) -> None:
        """A turn that may not serve all: the share that used least lately comes first, and within a share the existing
        connections come before new ones."""
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
        """Serve one share until the turn ends. Returns the time afterwards."""
        for descriptor, events, watched in ready:
            if self._watched.get(descriptor) is not watched:
                continue  # closed in this turn
            if now > end or self.must_hold():
                return now
            now = self._tell(watched, events, now)
        waiting = self._waiting.get(share, ())
        while waiting and now <= end and not self.must_hold():
            now = self._tell(waiting.popleft(), 0, now)
            if not waiting:
                del self._waiting[share]
        return now

    def must_hold(self) -> bool:
        """Checked before every call: the process may have been stopped at any point of the turn."""
        if self.fence.up():
            self.hold()
            return True
        return self._held

    def _call(self, call: Callable[[], None]) -> None:
        if self.must_hold():
            self._delayed.append(call)
        else:
            call()

    def _poll_again(self) -> None:
        """Poll in the loop's next turn even if no socket is ready."""
        if not self._again:
            self._again = True
            self.loop.call_soon(self._poll_now)

    def _poll_now(self) -> None:
        self._again = False
        self._poll()

    def _behind(self, now: int) -> bool:
        """A policy snapshot must be read first: skip this turn."""
        if self.must_hold():
            return True
        if now - self._ended > STALL and self.fence.behind():
            self.hold()
            self.loop.call_later(self.wait, self.go_on)
            return True
        return False

    def _tell(self, watched: Watched, events: int, before: int) -> int:
        """Call `ready` and charge the time to its share. Returns the time afterwards."""
        watched.ready(events)
        after = monotonic_ns()
        share = watched.share
        if after >> HALVED != share.period:
            share.age(after)
        took = after - before
        if took > LONG:  # or the process was not running: count CPU time only
            took = min(took, thread_time_ns() - self._cpu)
        share.spent(took)
        return after
