"""One TCP connection of a session: its socket, what is still to be sent, and who holds up its reading.

A leg knows no gate. Reading stops while anybody holds it (the gate, a full buffer on the other leg, a connection in
the making, a splice) and goes on when the last one lets go. It is told what the kernel can do by the worker's poller;
the loop's own transports would cost a short connection more than all else that it needs.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from l7proxy.proxy.server.poller import BROKEN, IN, OUT, Poller
from l7proxy.proxy.server.shares import READ, Pace, Share

HIGH_WATER: Final = 256 << 10
LOW_WATER: Final = 64 << 10
"""Bytes not yet taken by the kernel, per leg."""
NO_LINGER: Final = struct.pack("ii", 1, 0)
"""socket(7), SO_LINGER: makes the close a RST."""


class ReadPause:
    """Who stopped the reading, one bit each. Plain numbers: an IntFlag's `|` costs more than a system call."""

    GATE: Final = 1
    FULL: Final = 2
    CONNECTING: Final = 4
    SPLICE: Final = 8
    UNREAD: Final = 16
    MEMORY: Final = 32


class StreamOwner(Protocol):
    """The session, as a leg sees it. None of these may raise."""

    def finished(self, stream: SocketStream) -> None:
        """The other end sends no more."""

    def lost(self, stream: SocketStream, error: Exception | None) -> None:
        """The connection is gone; its descriptor is closed when this returns: till then, who watches it can let go."""

    def crowded(self, stream: SocketStream, *, full: bool) -> None:
        """What was written does not go out fast enough (or does again)."""

    def holding(self) -> None:
        """`unsent` is another number than it was."""


class _Nobody:
    """The party of a leg that has parted from its session."""

    def finished(self, stream: SocketStream) -> None: ...
    def lost(self, stream: SocketStream, error: Exception | None) -> None: ...
    def crowded(self, stream: SocketStream, *, full: bool) -> None: ...
    def holding(self) -> None: ...


NOBODY: Final[StreamOwner] = _Nobody()
NOBODYS: Final = Share()


def _unheard(data: bytes) -> None: ...


class SocketStream:
    """Client's or server's. `made` once it has a socket, `gone` once that is closed."""

    def __init__(self, party: StreamOwner, received: Callable[[bytes], None]) -> None:
        """`received` is told of bytes, and must not raise."""
        self._party = party
        self.share = NOBODYS
        """Until it is opened: then who it is for."""
        self.pace: Pace | None = None
        """How much is read at a time: None where what is read costs little, however it is made."""
        self.data_received = received
        self.write: Callable[[bytes], None] = self._write
        """To be called while `closing` says no."""
        self._holds = 0
        self._unsent = bytearray()
        self._full = False
        self._closing = False
        self._losing = False
        self._finishing = False
        self._events = 0
        self.made = False
        self.eof = False
        self.gone = False

    def open(self, sock: socket.socket, poller: Poller) -> None:
        """Take a connected, non-blocking socket over. OSError: it cannot be watched."""
        self._sock, self._poller = sock, poller
        self.descriptor = sock.fileno()
        self.made = True
        if self._holds:
            poller.forget(self.descriptor)  # the dial's, which is over
        else:
            self._events = IN
            poller.watch(self.descriptor, IN, self)

    # ---- what the poller tells ----

    def ready(self, events: int) -> None:
        if self._events & IN and events & (IN | BROKEN):
            self._read()
        if self._unsent and events & (OUT | BROKEN):
            self._flush()

    def _read(self) -> None:
        pace = self.pace
        try:
            data = self._sock.recv(READ if pace is None else pace.read)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if data:
            if pace is not None:
                pace.got = len(data)
                self.share.reading = pace
            self.data_received(data)
            return
        if not self.eof:  # told again after a pause
            self.eof = True
            self._party.finished(self)
        self._watch()  # our direction stays open: who closes is decided elsewhere

    def _flush(self) -> None:
        if self._losing:
            return
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self._cannot_send(error)
            return
        del self._unsent[:sent]
        self._party.holding()
        if self._full and len(self._unsent) <= LOW_WATER:
            self._full = False
            self._party.crowded(self, full=False)
        if not self._unsent:
            self._sent_all()

    def _sent_all(self) -> None:
        if self._closing:
            self._lose(None)
            return
        self._watch()
        if self._finishing:
            self._shut()

    # ---- what the session asks for ----

    def _write(self, data: bytes) -> None:
        if self._finishing:
            raise RuntimeError("written to after its end")
        if self._closing or not data:
            return
        if not self._unsent:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._cannot_send(error)
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._unsent += data
        self._party.holding()
        self._watch()
        if not self._full and len(self._unsent) > HIGH_WATER:
            self._full = True
            self._party.crowded(self, full=True)

    def closing(self) -> bool:
        return self._closing

    @property
    def usable(self) -> bool:
        """Made, and neither lost nor being closed."""
        return self.made and not self._closing

    @property
    def unsent(self) -> int:
        return len(self._unsent)

    def low_water(self, count: int) -> None:
        """Nobody is told of fewer bytes than these, but of the end at once (socket(7), SO_RCVLOWAT)."""
        if self.usable:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def hold(self, hold: int) -> None:
        """Stop reading, on behalf of `hold`."""
        self._holds |= hold
        self._watch()

    def release(self, hold: int) -> None:
        if self._holds:
            self._holds &= ~hold
            self._watch()

    def finish(self) -> None:
        """FIN after what was written."""
        if self.usable and not self._finishing:
            self._finishing = True
            if not self._unsent:
                self._shut()

    def close(self) -> None:
        """Close both directions after what was written has gone out."""
        if not self.usable:
            return
        self._closing = True
        if self._unsent:
            self._watch()
        else:
            self._lose(None)

    def reset(self) -> None:
        """RST, now. What was written and not yet sent is lost."""
        if not self.made or self.gone:
            return
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self._closing = True
        self._lose(None)

    def part(self) -> None:
        """For good: nobody listens, and nobody's memory is held by this leg."""
        self._party = NOBODY
        self.data_received = self.write = _unheard

    # ---- the socket ----

    def _watch(self) -> None:
        """Have the poller tell what is of use now. With nothing to wait for it is not watched at all, since epoll
        always tells of a reset: that is heard when somebody reads or writes."""
        if not self.made or self._losing:
            return
        events = 0 if self._holds or self.eof or self._closing else IN
        if self._unsent:
            events |= OUT
        if events == self._events:
            return
        self._events = events
        if not events:
            self._poller.forget(self.descriptor)
            return
        try:
            self._poller.watch(self.descriptor, events, self)
        except OSError as error:  # no more can be watched (epoll(7), max_user_watches)
            self._fail(error)

    def _shut(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # reset meanwhile
            self._cannot_send(error)

    def _cannot_send(self, error: OSError) -> None:
        """The other end has gone. What it said before may still be here: a server may answer a request that it has not
        read whole, and close. It is heard in the loop's next turn, since whoever writes cannot be told now."""
        if self._closing or self.eof:
            self._fail(error)
            return
        self._closing = True
        self._unsent.clear()
        self._watch()
        self._poller.loop.call_soon(self._hear_out, error)

    def _hear_out(self, error: OSError) -> None:
        """An end that is read here may be the reset that `error` has told of, so it counts as that."""
        while not self._holds and not self._losing:
            try:
                data = self._sock.recv(READ)
            except OSError:
                break
            if not data:
                break
            self.data_received(data)
        self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._closing = True
        self._lose(error)

    def _lose(self, error: OSError | None) -> None:
        """Tell the loss in the loop's next turn, and close then: see poller."""
        if self._losing:
            return
        self._losing = True
        self._unsent.clear()
        self._poller.forget_closing(self.descriptor)
        self._poller.loop.call_soon(self._lost, error)

    def _lost(self, error: OSError | None) -> None:
        self.gone = True
        try:
            self._party.lost(self, error)
        finally:
            self._sock.close()
