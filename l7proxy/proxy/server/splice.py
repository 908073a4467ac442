"""Bytes from one leg to the other inside the kernel, through a pipe (splice(2)): none of them comes into this process.

A Run borrows two legs of a session: while it lasts, nobody reads the source or writes to the target. It ends when its
length has been moved, at the source's end, when it has become too slow to be worth a pipe, or when it is stopped; then
the legs are as they were, and what was moved is told exactly. What the pipe still holds then is written to the target
the ordinary way, so a Run may end at any time and nothing is lost.
"""

from __future__ import annotations

import os
from typing import Final, NoReturn, Protocol

from l7proxy.proxy.server.pipes import Pipe, Pipes, ReadCoalescer
from l7proxy.proxy.server.poller import IN, OUT
from l7proxy.proxy.server.socket_stream import ReadPause, SocketStream
from l7proxy.proxy.server.timer_wheel import Timer, TimerWheel
from l7proxy.wire.body import ENDLESS

LOOK: Final = 0.5
"""Seconds between looks at a run's speed."""
WORTHWHILE: Final = 64 << 10
"""Bytes per look. A slower run gives its pipe back."""
MANY: Final = 32 << 10
"""Bytes that one wakeup brought, half a segment of a fast sender: the next may wait until it fills the pipe."""
FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Borrower(Protocol):
    """The session, as a run sees it. None of these may raise."""

    def moved(self) -> None:
        """Bytes went out since the last look: there was no silence."""

    def spliced(self, run: SpliceTransfer) -> None:
        """The run is over and the legs are as before: `run.moved` bytes are to be told to the gate."""

    def broken(self, stream: SocketStream, error: OSError) -> None:
        """The run is over because this leg's connection failed."""


class SpliceTransfer:
    """One direction's bytes under way. The wheel looks at it now and then."""

    __slots__ = (
        "_borrower",
        "_gathering",
        "_in",
        "_inside",
        "_left",
        "_out",
        "_pipe",
        "_pipes",
        "_seen",
        "_sized",
        "_target",
        "_timer",
        "_timers",
        "_waits",
        "_write",
        "moved",
        "source",
    )

    def __init__(
        self,
        borrower: Borrower,
        source: SocketStream,
        target: SocketStream,
        length: int,
        pipe: Pipe,
        pipes: Pipes,
        timers: TimerWheel,
    ) -> None:
        """It runs from here on; see `start`."""
        self._borrower = borrower
        self.source = source
        self._target = target
        self._left = length
        self._pipe: Pipe | None = pipe
        self._pipes = pipes
        self._timers = timers
        self._in, self._out = source.descriptor, target.descriptor
        self._inside = 0  # bytes in the pipe
        self._waits = False  # for room in the target; else for bytes from the source
        self._seen = 0
        self._sized = length < ENDLESS
        self._gathering = ReadCoalescer(source.low_water)
        self._write = target.write
        self.moved = 0
        self._timer = Timer(self._expired)
        pipes.readiness.watch(self._in, IN, self._readable)  # OSError: nothing has been borrowed yet
        source.hold(ReadPause.SPLICE)
        target.write = _borrowed
        timers.arm(self._timer, LOOK)

    def stop(self) -> None:
        """Give everything back; the borrower is not told. What is in the pipe goes out by the target."""
        pipe, self._pipe = self._pipe, None
        if pipe is None:
            return
        self._pipes.readiness.forget(*((self._out, OUT) if self._waits else (self._in, IN)))
        self._timers.retire(self._timer)
        self._gathering.end()
        self._target.write = self._write
        self._empty(pipe)
        self._pipes.give(pipe, empty=not self._inside)
        self.source.release(ReadPause.SPLICE)

    def _expired(self) -> None:
        """Time to look whether this is worth a pipe."""
        moved = self.moved - self._seen
        if moved:
            self._borrower.moved()
        if moved < WORTHWHILE:
            self._finish()
            return
        self._seen = self.moved
        self._timers.arm(self._timer, LOOK)

    def _readable(self) -> None:
        pipe = self._pipe
        if pipe is None or self._ends():
            return
        try:
            count = os.splice(self._in, pipe.write, min(self._left, pipe.size), flags=FLAGS)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if not count:
            self._finish()  # the leg will see the end again, and tell it
            return
        self._inside = count
        self._left -= count
        self._gather(count, pipe)
        self._drain()

    def _gather(self, brought: int, pipe: Pipe) -> None:
        """The next wakeup shall bring a pipe full: where many came, and only bytes that are promised still, so that
        neither the last of a body nor what has no known end ever waits."""
        if self._sized and self._left and brought >= MANY:
            self._gathering.ask(min(self._left, pipe.size))
        else:
            self._gathering.end()

    def _drain(self) -> None:
        """From the pipe to the target, as much as it takes; the rest when it has room again."""
        pipe, target = self._pipe, self._target
        if pipe is None or self._ends():
            return
        while self._inside:
            try:
                if target.unsent:  # what was written before comes first, and is its own to send
                    raise BlockingIOError
                count = os.splice(pipe.read, self._out, self._inside, flags=FLAGS)
            except BlockingIOError:
                self._wait_for_room(True)
                return
            except OSError:  # what is left shows it to the leg, which has more to hear before it tells
                self._finish()
                return
            self._inside -= count
            self.moved += count
        if self._left:
            self._wait_for_room(False)
        else:
            self._finish()

    def _wait_for_room(self, waits: bool) -> None:
        if waits is self._waits:
            return
        self._waits = waits
        readiness = self._pipes.readiness
        try:
            if waits:
                readiness.forget(self._in, IN)
                readiness.watch(self._out, OUT, self._drain)
            else:
                readiness.forget(self._out, OUT)
                readiness.watch(self._in, IN, self._readable)
        except OSError:  # no more can be watched
            self._finish()

    # ---- the end ----

    def _ends(self) -> bool:
        """A leg that is closing will tell so itself. Its descriptor must not be touched any more."""
        if self.source.usable and self._target.usable:
            return False
        self._finish()
        return True

    def _finish(self) -> None:
        self.stop()
        self._borrower.spliced(self)

    def _fail(self, error: OSError) -> None:
        """The source cannot tell that itself: the kernel says it only once."""
        self.stop()
        self._borrower.broken(self.source, error)

    def _empty(self, pipe: Pipe) -> None:
        """What is left in the pipe is the target's; if that is gone, nobody's."""
        while self._inside and self._target.usable:
            data = os.read(pipe.read, self._inside)
            self._target.write(data)
            self._inside -= len(data)
            self.moved += len(data)


def start(
    borrower: Borrower, source: SocketStream, target: SocketStream, length: int, *, pipes: Pipes, timers: TimerWheel
) -> SpliceTransfer | None:
    """Move `length` bytes, or all until the source's end, whichever is less. None: it cannot be done now."""
    if source.eof or not source.usable or not target.usable:
        return None
    pipe = pipes.take()
    if pipe is None:
        return None
    try:
        return SpliceTransfer(borrower, source, target, length, pipe, pipes, timers)
    except OSError:  # no more can be watched (epoll(7), max_user_watches)
        pipes.give(pipe, empty=True)
        return None


def _borrowed(data: bytes) -> NoReturn:
    """What writing to the target is while a run lasts: a fault of ours, since the bytes would come out of order."""
    raise RuntimeError("written to while its bytes are spliced")
