"""Settings of glibc's malloc (mallopt(3)) for a process with many long-lived objects, some large blocks, few threads.

By default each thread may get a heap of its own, and a freed large block raises the size from which blocks are mapped
one by one: later ones come from the heap, and what they leave there is not given back.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
LARGE: Final = 128 << 10
"""Bytes from which a block is mapped by itself, and given back when it is freed: glibc's default, but fixed."""


def give_back() -> None:
    """Call it before there are threads. Without effect where the C library has no mallopt (musl)."""
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for name, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, LARGE), (_TRIM_THRESHOLD, LARGE)):
            mallopt(name, value)
