"""A file that exists while every child is ready: for probes that must be cheap, such as `test -e PATH`.

A child says so by one byte on a pipe. When it exits, or the supervisor stops, the file goes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from l7proxy.errors import ConfigError


class ReadyFile:
    """Used by one event loop. ConfigError when the file cannot be written."""

    def __init__(self, path: Path, children: Iterable[str]) -> None:
        self._path = path
        self._awaited = set(children)
        self._stopped = False
        self._write(False)  # a file of an earlier run, which was killed

    @contextmanager
    def channel(self, child: str) -> Iterator[int]:
        """The descriptor for this run of the child."""
        reading, writing = os.pipe()
        loop = asyncio.get_running_loop()
        loop.add_reader(reading, self._heard, child, reading)
        try:
            yield writing
        finally:
            loop.remove_reader(reading)
            os.close(reading)
            os.close(writing)
            self._awaited.add(child)
            self._write(False)

    def stop(self) -> None:
        """The children end now: none counts as ready any more."""
        self._stopped = True
        self._write(False)

    def _heard(self, child: str, reading: int) -> None:
        os.read(reading, 1)
        self._awaited.discard(child)
        if not self._awaited and not self._stopped:
            self._write(True)

    def _write(self, ready: bool) -> None:
        try:
            if ready:
                self._path.touch(mode=0o644)
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"flag --ready-file: {self._path}: {error.strerror}") from error
