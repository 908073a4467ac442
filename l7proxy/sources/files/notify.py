"""Notifies that something in the watched directories changed. The event itself is ignored: the source scans again.

The kernel's queue may overflow, a watch may be added too late, a symbolic link may point elsewhere (inotify(7),
limitations). So a notification is only a hint, and events are not parsed. That needs only three system calls; a library
would add threads.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

IN_NONBLOCK: Final = os.O_NONBLOCK
IN_CLOEXEC: Final = os.O_CLOEXEC
IN_ATTRIB: Final = 0x004
IN_CLOSE_WRITE: Final = 0x008
IN_MOVED: Final = 0x0C0
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_SELF: Final = 0xC00
IN_ONLYDIR: Final = 0x01000000
MASK: Final = IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED | IN_CREATE | IN_DELETE | IN_SELF | IN_ONLYDIR

_libc = ctypes.CDLL(None, use_errno=True)


class ChangeNotifier:
    """Context manager for use in a running event loop. Without inotify it never notifies: also scan periodically."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._fd: int = _libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._readable)

    def __enter__(self) -> ChangeNotifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def watch(self, directory: Path) -> None:
        """Start watching. A second call for the same directory has no effect. Any thread."""
        if self._fd >= 0:
            _libc.inotify_add_watch(self._fd, os.fsencode(directory), MASK)

    def notify(self) -> None:
        """As if something had changed."""
        self._changed.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until something has changed since the last call (True), or until the timeout (False)."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        changed = self._changed.is_set()
        self._changed.clear()
        return changed

    def _readable(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._fd, 65536):
                pass
        self._changed.set()
