"""One TCP connection of a session: its socket, its unsent bytes, and the reasons why its reading is paused.

A socket stream does not know the gate. Reading is paused while at least one reason holds (ReadPause: the gate, a full
buffer on the other stream, a connection being established, a splice, memory). Readiness comes from the worker's poller:
the event loop's transports would cost more than all the rest of a short connection.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from l7proxy.proxy.server.poller import BROKEN, IN, OUT, Poller
from l7proxy.proxy.server.shares import READ, Pace, Share
from l7proxy.proxy.server.transform import Transform

HIGH_WATER: Final = 256 << 10
LOW_WATER: Final = 64 << 10
"""Bytes not yet taken by the kernel, per socket stream."""
NO_LINGER: Final = struct.pack("ii", 1, 0)
"""socket(7), SO_LINGER: close() sends a RST."""


class ReadPause:
    """Reasons to pause reading, one bit each. Plain numbers: an IntFlag's `|` costs more than a system call."""

    GATE: Final = 1
    FULL: Final = 2
    CONNECTING: Final = 4
    SPLICE: Final = 8
    UNREAD: Final = 16
    MEMORY: Final = 32


class StreamOwner(Protocol):
    """The session, as a socket stream sees it. These methods must not raise."""

    def finished(self, stream: SocketStream) -> None:
        """The peer has sent EOF."""

    def lost(self, stream: SocketStream, error: Exception | None) -> None:
        """The connection is lost. Its descriptor is closed after this returns: other watchers of it must stop now."""

    def congested(self, stream: SocketStream, *, full: bool) -> None:
        """`full`: the unsent bytes are above HIGH_WATER; else they are down to LOW_WATER."""

    def holding(self) -> None:
        """`unsent` has changed."""


class _NoOwner:
    """The owner of a socket stream that has parted from its session."""

    def finished(self, stream: SocketStream) -> None: ...
    def lost(self, stream: SocketStream, error: Exception | None) -> None: ...
    def congested(self, stream: SocketStream, *, full: bool) -> None: ...
    def holding(self) -> None: ...


NO_OWNER: Final[StreamOwner] = _NoOwner()
NOBODYS: Final = Share()


def _unheard(data: bytes) -> None: ...


class SocketStream:
    """The client's or the server's connection. `made`: it has a socket. `gone`: the socket is closed."""

    def __init__(self, party: StreamOwner, received: Callable[[bytes], None]) -> None:
        """`received` is called with the bytes read, and must not raise."""
        self._party = party
        self.share = NOBODYS
        """Replaced by the client's share before the stream is opened."""
        self.pace: Pace | None = None
        """The read size; None where every byte is cheap to process."""
        self.data_received = received
        self.write: Callable[[bytes], None] = self._write
        """To be called only while `closing` is false."""
        self.reader: Callable[[], None] | None = None
        """The splice that reads this socket: called instead of reading it. It must not raise."""
        self._writer: Callable[[], None] | None = None
        self._holds = 0
        self._unsent = bytearray()
        self._layer: _Layer | None = None
        self.full = False
        """`congested` has been called with full=True."""
        self._closing = False
        self._losing = False
        self._finishing = False
        self._finished = False
        self._events = 0
        self.made = False
        self.eof = False
        self.gone = False

    def open(self, sock: socket.socket, poller: Poller) -> None:
        """Take over a connected, non-blocking socket. OSError when it cannot be watched."""
        self._sock, self._poller = sock, poller
        self.descriptor = sock.fileno()
        self.made = True
        if self._holds:
            poller.forget(self.descriptor)  # registered by the UpstreamConnector, which is done
        else:
            self._events = IN
            poller.watch(self.descriptor, IN, self)

    # ---- events from the poller ----

    def ready(self, events: int) -> None:
        if self._events & IN and events & (IN | BROKEN):
            if self.reader is None:
                self._read()
            else:
                self.reader()
        if events & (OUT | BROKEN):
            if self._unsent:
                self._flush()
            if self._writer is not None and not self._unsent:
                self._writer()

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
        if self.eof or self._layer is None or self._layer.eof():
            self._input_ended()

    def _input_ended(self) -> None:
        if not self.eof:  # else reported again after a pause
            self.eof = True
            self._party.finished(self)
        self._watch()  # our direction stays open: the owner decides when to close

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
        self._weigh()
        if not self._unsent:
            self._sent_all()

    def _sent_all(self) -> None:
        if self._closing:
            self._lose(None)
            return
        self._watch()
        self._shut()

    def _weigh(self) -> None:
        """`unsent` has changed."""
        self._party.holding()
        unsent = self.unsent
        if self.full and unsent <= LOW_WATER:
            self.full = False
            self._party.congested(self, full=False)
        elif not self.full and unsent > HIGH_WATER:
            self.full = True
            self._party.congested(self, full=True)

    # ---- calls from the session ----

    def _write(self, data: bytes) -> None:
        if self._finishing:
            raise RuntimeError("written to after its end")
        self._put(data)

    def _put(self, data: bytes) -> None:
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
        self._watch()
        self._weigh()

    def closing(self) -> bool:
        return self._closing

    @property
    def usable(self) -> bool:
        """It has a socket, which is neither lost nor being closed."""
        return self.made and not self._closing

    @property
    def plain(self) -> bool:
        """No transform is installed: the bytes of the socket are those of the gate."""
        return self._layer is None

    @property
    def unsent(self) -> int:
        layer = self._layer
        return len(self._unsent) + (layer.transform.unsent if layer is not None else 0)

    @property
    def held(self) -> int:
        """Bytes kept, in both directions."""
        layer = self._layer
        return self.unsent + (layer.transform.unread if layer is not None else 0)

    def carry(self, transform: Transform) -> None:
        """From now on `transform` stands between socket and session. Once at most, on an open stream."""
        layer = self._layer = _Layer(self, transform, self.data_received)
        self.data_received, self.write = layer.received, layer.write
        layer.flush()

    def wait_for_room(self, writer: Callable[[], None] | None) -> None:
        """Call the splice that writes to this socket when it can take bytes and none are unsent. None: no more."""
        self._writer = writer
        self._watch()

    def low_water(self, count: int) -> None:
        """Report readable only from `count` bytes on; EOF at once (socket(7), SO_RCVLOWAT)."""
        if self.usable:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def hold(self, hold: int) -> None:
        """Pause reading for the reason `hold`."""
        self._holds |= hold
        self._watch()

    def release(self, hold: int) -> None:
        if self._holds:
            self._holds &= ~hold
            self._watch()

    def finish(self) -> None:
        """Send FIN after the unsent bytes."""
        if self.usable and not self._finishing:
            self._finishing = True
            if self._layer is not None:
                self._layer.finish()
            self._shut()

    def close(self) -> None:
        """Close both directions after the unsent bytes are sent."""
        if self._layer is not None:
            self.finish()
        if not self.usable:
            return
        self._closing = True
        if self._unsent:
            self._watch()
        else:
            self._lose(None)

    def reset(self) -> None:
        """Send RST now. Unsent bytes are lost."""
        if not self.made or self.gone:
            return
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self._closing = True
        self._lose(None)

    def part(self) -> None:
        """Break the references to the session, for good."""
        self._party = NO_OWNER
        self._layer = None
        self.data_received = self.write = _unheard

    # ---- the socket ----

    def _watch(self) -> None:
        """Register the events needed now. With none, the socket is not watched at all, since epoll always reports a
        reset; the next read or write finds it."""
        if not self.made or self._losing:
            return
        events = 0 if self._holds or self.eof or self._closing else IN
        if self._unsent or self._writer is not None:
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
        """Send the FIN that `finish` asked for, once nothing is left to send."""
        if not self._finishing or self._finished or self.unsent:
            return
        self._finished = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # the peer has reset the connection
            self._cannot_send(error)

    def _cannot_send(self, error: OSError) -> None:
        """The peer is gone. Bytes that it sent before may be unread: a server may answer before it has read the whole
        request, and close. They are read in the loop's next turn: the caller is writing and expects no callback."""
        if self._closing or self.eof:
            self._fail(error)
            return
        self._closing = True
        self._unsent.clear()
        self._watch()
        self._poller.soon(lambda: self._hear_out(error))

    def _hear_out(self, error: OSError) -> None:
        """Read what is left. An EOF here may be the reset that caused `error`, so it is reported as `error`."""
        if self.reader is not None:
            self.reader()  # the splice ends: its bytes come first
        while not self._holds and not self._losing:
            if self._poller.must_hold():
                self._poller.soon(lambda: self._hear_out(error))
                return
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
        """Report the loss and close the socket in the loop's next turn: see `poller`. If it is not our own close, the
        session may write to the other socket then, so that this waits behind the fence."""
        if self._losing:
            return
        self._losing = True
        self._unsent.clear()
        self._poller.forget_closing(self.descriptor)
        if error is None:
            self._poller.loop.call_soon(self._lost, None)
        else:
            self._poller.soon(lambda: self._lost(error))

    def _lost(self, error: OSError | None) -> None:
        self.gone = True
        try:
            self._party.lost(self, error)
        finally:
            self._sock.close()


class _Layer:
    """A transform between a stream's socket and its session."""

    def __init__(self, stream: SocketStream, transform: Transform, received: Callable[[bytes], None]) -> None:
        """`received` takes the plain bytes."""
        self.transform = transform
        self._stream = stream
        self._received = received

    def received(self, data: bytes) -> None:
        plain = self.transform.receive(data)
        self.flush()
        if plain:
            self._received(plain)
        failure = self.transform.failure
        if failure is not None:
            self._fail(failure)
        elif self.transform.ended:
            self._stream._input_ended()

    def eof(self) -> bool:
        """The socket's EOF. False: it is a failure, which has been reported."""
        try:
            self.transform.receive_eof()
        except OSError as error:
            self._fail(error)
            return False
        return True

    def write(self, data: bytes) -> None:
        if self._stream._finishing:
            raise RuntimeError("written to after its end")
        try:
            self.transform.send(data)
        except OSError as error:
            self._fail(error)
            return
        self.flush()

    def finish(self) -> None:
        self.transform.finish()
        self.flush()

    def flush(self) -> None:
        """Send what there is to send."""
        output, stream = self.transform.output(), self._stream
        if stream._finished:
            return  # after our FIN
        stream._put(output)
        stream._weigh()
        stream._shut()

    def _fail(self, error: OSError) -> None:
        self.flush()
        self._stream._fail(error)
