"""Kernel resources for splicing: a limited number of pipes, and the number of bytes that make a socket ready."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

RUNS: Final = 64
"""Transfers at a time in one worker. Further connections are read and written as usual."""
KEPT: Final = 8
"""Empty pipes kept for the next transfers."""
DESCRIPTORS: Final = 2 * (RUNS + KEPT)
"""File descriptors that all of them may need."""
PIPE: Final = 512 << 10
"""Bytes in a pipe. Leftovers go to the target's socket stream, which may hold as much; a larger pipe is not faster.
Where the kernel does not allow it (pipe(7), pipe-user-pages-soft), the size stays 64 KiB."""
PATIENCE: Final = 0.02
"""Seconds; bytes in the middle of a body wait at most twice this for more bytes."""


@dataclass(frozen=True, slots=True)
class Pipe:
    read: int
    write: int
    size: int

    def close(self) -> None:
        os.close(self.read)
        os.close(self.write)


class Pipes:
    """The pipes of one worker, at most `limit` in use."""

    def __init__(self, limit: int = RUNS) -> None:
        self._limit = limit
        self._kept: list[Pipe] = []
        self.used = 0

    def take(self) -> Pipe | None:
        """An empty pipe; None when all are in use or the process is out of descriptors."""
        if self.used >= self._limit:
            return None
        try:
            pipe = self._kept.pop() if self._kept else _make()
        except OSError:
            return None
        self.used += 1
        return pipe

    def give(self, pipe: Pipe, *, empty: bool) -> None:
        """Return a pipe. One that is not empty is closed: its bytes would go to the next connection."""
        self.used -= 1
        if empty and len(self._kept) < KEPT:
            self._kept.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        while self._kept:
            self._kept.pop().close()


class ReadCoalescer:
    """Delays a socket's readiness until more bytes have arrived: a wakeup costs about the same for few and many bytes.

    Only while bytes keep coming: PATIENCE after the last `ask`, a single byte makes the socket ready again.
    """

    __slots__ = ("_asked", "_count", "_low_water", "_timer")

    def __init__(self, low_water: Callable[[int], None]) -> None:
        """`low_water` sets how many bytes make the socket ready (1: the kernel's default)."""
        self._low_water = low_water
        self._count = 1
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, count: int) -> None:
        """Be ready when `count` bytes are there; the kernel reports it earlier at EOF or when its buffer is full."""
        self._asked = True
        self._set(count)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._look)

    def end(self) -> None:
        """Return to the kernel's default."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._set(1)

    def _look(self) -> None:
        self._timer = None
        if self._asked:
            self._asked = False
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._look)
        else:
            self._set(1)

    def _set(self, count: int) -> None:
        if count != self._count:
            self._low_water(count)
            self._count = count


def _make() -> Pipe:
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    size = 1 << 16
    with suppress(OSError):
        size = fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE)
    return Pipe(read, write, size)
