"""Moves bytes from one socket to the other inside the kernel, through a pipe (splice(2)), without copying them here.

A SpliceTransfer borrows both socket streams of a session: while it runs, only it reads the source and writes to the
target, and the streams tell it when they are ready. It ends when its length has been moved, at the source's EOF, when
it is too slow to be worth a pipe, or when it is stopped. Then bytes left in the pipe are written to the target the
usual way, so nothing is lost, the streams work as before, and the exact number of bytes moved is reported.
"""

from __future__ import annotations

import os
from typing import Final, NoReturn, Protocol

from l7proxy.proxy.server.pipes import Pipe, Pipes, ReadCoalescer
from l7proxy.proxy.server.socket_stream import ReadPause, SocketStream
from l7proxy.proxy.server.timer_wheel import Timer, TimerWheel
from l7proxy.wire.body import ENDLESS

LOOK: Final = 0.5
"""Seconds between checks of a transfer's speed."""
WORTHWHILE: Final = 64 << 10
"""Bytes per LOOK. A slower transfer returns its pipe."""
MANY: Final = 32 << 10
"""Bytes in one wakeup, half a segment of a fast sender: from here on, the next wakeup may wait for a full pipe."""
FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Borrower(Protocol):
    """The session, as a transfer sees it. These methods must not raise."""

    def moved(self) -> None:
        """Bytes went out since the last check: the connection is not idle."""

    def spliced(self, run: SpliceTransfer) -> None:
        """The transfer has ended and the streams work as before. Report `run.moved` bytes to the gate."""

    def broken(self, stream: SocketStream, error: OSError) -> None:
        """The transfer has ended because this stream's connection failed."""


class SpliceTransfer:
    """The transfer of one direction. A timer checks its speed."""

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
        """Starts the transfer."""
        self._borrower = borrower
        self.source = source
        self._target = target
        self._left = length
        self._pipe: Pipe | None = pipe
        self._pipes = pipes
        self._timers = timers
        self._in, self._out = source.descriptor, target.descriptor
        self._inside = 0  # bytes in the pipe
        self._waits = False  # for room in the target; False: for bytes from the source
        self._seen = 0
        self._sized = length < ENDLESS
        self._gathering = ReadCoalescer(source.low_water)
        self._write = target.write
        self.moved = 0
        self._timer = Timer(self._expired)
        source.reader = self._readable
        target.write = _borrowed
        timers.arm(self._timer, LOOK)

    def stop(self) -> None:
        """Release everything without calling the borrower. Bytes in the pipe are written to the target."""
        pipe, self._pipe = self._pipe, None
        if pipe is None:
            return
        self._timers.retire(self._timer)
        self._gathering.end()
        self.source.reader = None
        self._target.wait_for_room(None)
        self._target.write = self._write
        self._empty(pipe)
        self._pipes.give(pipe, empty=not self._inside)
        self.source.release(ReadPause.SPLICE)

    def _expired(self) -> None:
        """Check whether the speed is worth a pipe."""
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
            self._finish()  # the socket stream reads the EOF again and reports it
            return
        self._inside = count
        self._left -= count
        self._gather(count, pipe)
        self._drain()

    def _gather(self, brought: int, pipe: Pipe) -> None:
        """Delay the next wakeup until the pipe can be filled, if this one brought many bytes. Only for bytes of a known
        length still to come: neither the end of a body nor a stream of unknown length ever waits."""
        if self._sized and self._left and brought >= MANY:
            self._gathering.ask(min(self._left, pipe.size))
        else:
            self._gathering.end()

    def _drain(self) -> None:
        """Move from the pipe to the target what it takes; the rest when it has room again."""
        pipe, target = self._pipe, self._target
        if pipe is None or self._ends():
            return
        while self._inside:
            try:
                if target.unsent:  # bytes written earlier come first; the stream sends them itself
                    raise BlockingIOError
                count = os.splice(pipe.read, self._out, self._inside, flags=FLAGS)
            except BlockingIOError:
                self._wait_for_room(True)
                return
            except OSError:  # writing the rest reports it to the stream, which first reads what is left
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
        if waits:
            self.source.hold(ReadPause.SPLICE)
            self._target.wait_for_room(self._drain)
        else:
            self._target.wait_for_room(None)
            self.source.release(ReadPause.SPLICE)

    # ---- the end ----

    def _ends(self) -> bool:
        """End if a stream is closing: it reports that itself, and its descriptor must not be used."""
        if self.source.usable and self._target.usable:
            return False
        self._finish()
        return True

    def _finish(self) -> None:
        self.stop()
        self._borrower.spliced(self)

    def _fail(self, error: OSError) -> None:
        """Report the source's error: the kernel returns it only once, so the stream cannot see it."""
        self.stop()
        self._borrower.broken(self.source, error)

    def _empty(self, pipe: Pipe) -> None:
        """Write what is left in the pipe to the target, if that is still usable."""
        while self._inside and self._target.usable:
            data = os.read(pipe.read, self._inside)
            self._target.write(data)
            self._inside -= len(data)
            self.moved += len(data)


def start(
    borrower: Borrower, source: SocketStream, target: SocketStream, length: int, *, pipes: Pipes, timers: TimerWheel
) -> SpliceTransfer | None:
    """Move `length` bytes, or all until the source's EOF, whichever is less. None: not possible now."""
    if source.eof or not source.usable or not target.usable or not source.plain or not target.plain:
        return None
    pipe = pipes.take()
    return SpliceTransfer(borrower, source, target, length, pipe, pipes, timers) if pipe is not None else None


def _borrowed(data: bytes) -> NoReturn:
    """`write` of the target during a transfer: a bug, since bytes would be sent out of order."""
    raise RuntimeError("written to while its bytes are spliced")
