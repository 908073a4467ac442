"""Flows as JSON lines: one exported object per line, to a file rotated by size, or to standard output.

A sink never stops what it watches. It writes in a thread of its own; a full disk, a path that cannot be written or a
reader that does not read cost lines, which are counted and said in `problem`, and nothing else. Lines stay whole: what
a failed write left behind is cut off again, and half a line found at the end of a file is ended first.
"""

from __future__ import annotations

import gzip
import os
import select
import shutil
import stat
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from l7proxy.flows.event import Event

MAX_BYTES: Final = 10 << 20
MAX_BACKUPS: Final = 5
LINES: Final = 32
"""Lines made and written at once: 40 KB stay in the processor's caches and in the memory that the process has, and at
each write the loop gets the interpreter back."""
LOOK_AGAIN_MS: Final = 200
GZIP_LEVEL: Final = 1
"""The fastest: the sink waits for it, and the ring must not overtake it."""
RETRY_AFTER: Final = 5.0
"""Seconds until a file that could not be opened or written is tried again."""


class JsonLinesFile:
    """Appends to `path`; before it would grow over `max_bytes` it becomes `name-TIME.ext` and a new one begins.

    With `compress` it becomes `name-TIME.ext.gz`, unless there is no room for it.

    Others may rotate it, too: when the file at `path` is renamed, removed or truncated, the next line begins a new one.
    `now` names the files; what is waited for is measured by `clock`, which nobody sets.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = MAX_BYTES,
        backups: int = MAX_BACKUPS,
        compress: bool = False,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lost = 0
        self.problem = ""
        self._path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._compress = compress
        self._now = now
        self._clock = clock
        self._fd = -1
        self._size = 0
        self._retry_at = float("-inf")

    def consume(self, events: Sequence[Event]) -> None:
        for start in range(0, len(events), LINES):
            some = events[start : start + LINES]
            try:
                self._append(some)
            except OSError as error:
                self._retry_at = self._clock() + RETRY_AFTER
                self.problem = f"flow log {self._path}: {error.strerror or error}"

    def hurry(self) -> None:
        """A file has no reader to wait for."""

    def close(self) -> None:
        self._shut()

    def _append(self, events: Sequence[Event]) -> None:
        """Whole lines: in one write, or one by one where the file ends among them. Lost are those after a failure."""
        kept = 0
        try:
            if self._fd >= 0:
                self._look()
            if self._fd < 0:
                if self._clock() < self._retry_at:
                    return
                self._open()
            data = b"".join([event.line() for event in events])
            if self._size + len(data) <= self._max_bytes:
                self._write(data)
                kept = len(events)
            else:
                for line in data.splitlines(keepends=True):
                    self._append_line(line)
                    kept += 1
            self.problem = ""
        finally:
            self.lost += len(events) - kept

    def _look(self) -> None:
        """Follow what others did to the file. Where we may not look at the path, the open file goes on."""
        own = os.fstat(self._fd)
        self._size = own.st_size
        try:
            same = os.path.samestat(own, self._path.stat())
        except OSError as error:
            same = isinstance(error, PermissionError)
        if not same:
            self._shut()

    def _append_line(self, line: bytes) -> None:
        """One that is larger than a whole file gets one of its own."""
        if self._size and self._size + len(line) > self._max_bytes:
            self._rotate()
            self._open()
        self._write(line)

    def _write(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            self._cut()
            raise
        self._size += len(data)

    def _cut(self) -> None:
        """Take back half a line. Where even that fails, opening the file again ends it."""
        with suppress(OSError):
            os.ftruncate(self._fd, self._size)
        self._shut()

    def _open(self) -> None:
        """Only a plain file: a pipe or a device under that name could hold us up for ever."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(self._path, flags, 0o640)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise OSError("not a regular file")
        self._fd, self._size = fd, found.st_size
        if found.st_size and os.pread(fd, 1, found.st_size - 1) != b"\n":
            self._write(b"\n")

    def _shut(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _rotate(self) -> None:
        self._shut()
        backup = self._backup()
        self._path.rename(backup)
        if self._compress and self._backups:
            _compressed(backup)
        for old in self._kept()[: -self._backups or None]:
            old.unlink(missing_ok=True)

    def _backup(self) -> Path:
        """`flows-2006-01-02T15-04-05.000.jsonl`, in UTC; the next free millisecond when that is taken."""
        moment = int(self._now() * 1000)
        while True:
            second = datetime.fromtimestamp(moment // 1000, UTC).strftime("%Y-%m-%dT%H-%M-%S")
            path = self._path.with_name(f"{self._path.stem}-{second}.{moment % 1000:03d}{self._path.suffix}")
            if not path.exists() and not _gzip(path).exists():
                return path
            moment += 1

    def _kept(self) -> list[Path]:
        """Our backups, oldest first: their names sort as their times do."""
        digits = "[0-9]" * 2
        shape = f"-{digits * 2}-{digits}-{digits}T{digits}-{digits}-{digits}.[0-9]{digits}"
        pattern = f"{_literal(self._path.stem)}{shape}{_literal(self._path.suffix)}"
        return sorted([*self._path.parent.glob(pattern), *self._path.parent.glob(f"{pattern}.gz")])


class JsonLinesStream:
    """Writes to an open descriptor, as a rule standard output. A reader that stands still loses lines, not our time."""

    def __init__(self, fd: int = 1, *, name: str = "standard output", patience: float = 5.0) -> None:
        self.lost = 0
        self.problem = ""
        self._fd = fd
        self._name = name
        self._patience = patience
        self._rest = b""
        self._hurried = threading.Event()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def consume(self, events: Sequence[Event]) -> None:
        for event in events:
            if not self._send(event.line()):
                self.lost += 1

    def hurry(self) -> None:
        self._hurried.set()

    def close(self) -> None:
        """The descriptor stays open: it is not ours."""
        self.lost += bool(self._rest)

    def _send(self, line: bytes) -> bool:
        """True when the line is out. Half a line stays in `_rest` and goes first next time: lines stay whole."""
        data = self._rest + line if self._rest else line
        try:
            written = self._out(data)
        except OSError as error:
            self.problem = f"flow log {self._name}: {error.strerror or error}"
            return False
        before = len(self._rest)
        if written == len(data):
            self._rest, self.problem = b"", ""
            return True
        self.problem = f"flow log {self._name}: no reader"
        if written <= before:
            self._rest = self._rest[written:]
            return False
        self._rest = data[written:]
        return True

    def _out(self, data: bytes) -> int:
        """As much as is taken before patience ends; once it has ended, what is taken at once.

        Pieces of PIPE_BUF never block when poll has said that there is room (pipe(7)).
        """
        written = 0
        deadline = time.monotonic() + self._patience
        while written < len(data):
            patient = not self.problem and not self._hurried.is_set() and time.monotonic() < deadline
            if self._poll.poll(LOOK_AGAIN_MS if patient else 0):
                written += os.write(self._fd, data[written : written + select.PIPE_BUF])
            elif not patient:
                break
        return written


def _gzip(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _compressed(path: Path) -> None:
    """Replace a file by its compressed form: whole, or not at all."""
    part = path.with_name(f"{path.name}.gz.part")
    try:
        with path.open("rb") as plain, part.open("wb") as made:
            os.fchmod(made.fileno(), stat.S_IMODE(os.fstat(plain.fileno()).st_mode))
            with gzip.GzipFile(filename="", mode="wb", fileobj=made, compresslevel=GZIP_LEVEL) as packed:
                shutil.copyfileobj(plain, packed, 1 << 20)
        part.rename(_gzip(path))
    except OSError:  # no room: the plain one stays
        with suppress(OSError):
            part.unlink(missing_ok=True)
        return
    path.unlink(missing_ok=True)


def _literal(text: str) -> str:
    """Against a name that is a pattern for glob."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)
