"""One TCP connection of a session, seen from our side: what the loop tells is passed on, what it needs is remembered.

A leg knows no gate. Reading stops while anybody holds it (the gate, a full buffer on the other leg, a connection in
the making, a splice) and goes on when the last one lets go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from enum import IntFlag
from typing import Final, Protocol, cast

from l7proxy.model.net import HostPort, canonical
from l7proxy.proxy.server.upstream import reset_on_close

HIGH_WATER: Final = 256 << 10
LOW_WATER: Final = 64 << 10
"""Bytes not yet taken by the kernel, per leg."""


class Hold(IntFlag):
    """Who stopped the reading."""

    GATE = 1
    FULL = 2
    CONNECTING = 4
    SPLICE = 8
    UNREAD = 16


class Party(Protocol):
    """The session, as a leg sees it. None of these may raise."""

    def opened(self, leg: Leg) -> None: ...
    def finished(self, leg: Leg) -> None:
        """The other end sends no more."""

    def lost(self, leg: Leg, error: Exception | None) -> None:
        """The connection is gone; its descriptor is closed."""

    def crowded(self, leg: Leg, *, full: bool) -> None:
        """What was written does not go out fast enough (or does again)."""


class _Nobody:
    """The party of a leg that has parted from its session."""

    def opened(self, leg: Leg) -> None:
        leg.reset()

    def finished(self, leg: Leg) -> None: ...
    def lost(self, leg: Leg, error: Exception | None) -> None: ...
    def crowded(self, leg: Leg, *, full: bool) -> None: ...


NOBODY: Final[Party] = _Nobody()


def _unheard(data: bytes) -> None: ...


class Leg(asyncio.Protocol):
    """Client's or server's; `gone` once the loop has closed it."""

    __slots__ = ("_holds", "_party", "closing", "data_received", "eof", "gone", "transport", "write")
    closing: Callable[[], bool]
    write: Callable[[bytes], None]
    """The transport's own, from connection_made on: one call less per read. See `usable`."""

    def __init__(self, party: Party, received: Callable[[bytes], None]) -> None:
        """`received` is told of bytes, and must not raise."""
        self._party = party
        self.data_received = received  # type: ignore[assignment]
        self._holds = 0
        self.transport: asyncio.Transport | None = None
        self.eof = False
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = made = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self.write, self.closing = made.write, made.is_closing
        made.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        if self._holds:
            made.pause_reading()
        self._party.opened(self)

    def eof_received(self) -> bool:
        if not self.eof:  # told again after a pause
            self.eof = True
            self._party.finished(self)
        return True  # keep our direction open: who closes is decided elsewhere

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._party.lost(self, exc)

    def pause_writing(self) -> None:
        self._party.crowded(self, full=True)

    def resume_writing(self) -> None:
        self._party.crowded(self, full=False)

    @property
    def usable(self) -> bool:
        """Made, and neither lost nor being closed."""
        return self.transport is not None and not self.transport.is_closing()

    @property
    def unsent(self) -> int:
        return self.transport.get_write_buffer_size() if self.transport is not None and not self.gone else 0

    @property
    def descriptor(self) -> int:
        """Of its socket; the transport's to close."""
        assert self.transport is not None
        number: int = self.transport.get_extra_info("socket").fileno()
        return number

    def hold(self, hold: Hold) -> None:
        """Stop reading, on behalf of `hold`."""
        if not self._holds and self.usable:
            assert self.transport is not None
            self.transport.pause_reading()
        self._holds |= hold

    def release(self, hold: Hold) -> None:
        if not self._holds:
            return
        self._holds &= ~hold
        if not self._holds and self.usable:
            assert self.transport is not None
            self.transport.resume_reading()

    def finish(self) -> None:
        """FIN after what was written."""
        if self.usable:
            assert self.transport is not None
            with suppress(OSError):  # reset meanwhile: connection_lost is on its way
                self.transport.write_eof()

    def close(self) -> None:
        """Close both directions after what was written has gone out."""
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """RST, now. What was written and not yet sent is lost."""
        if self.transport is not None and not self.gone:
            reset_on_close(self.transport)
            self.transport.abort()

    def part(self) -> None:
        """For good: nobody listens, and nobody's memory is held by this leg."""
        self._party = NOBODY
        self.data_received = _unheard  # type: ignore[method-assign]

    def peer(self) -> HostPort | None:
        return self._name("peername")

    def local(self) -> HostPort | None:
        return self._name("sockname")

    def _name(self, which: str) -> HostPort | None:
        """None when the other end is gone before we looked."""
        assert self.transport is not None
        name = self.transport.get_extra_info(which)
        if not name:
            return None
        address = name[0]  # the kernel spells IPv4 canonically; IPv6 may be mapped or have a scope
        return HostPort(canonical(address) if ":" in address else address, name[1])
