"""Processes that the lab started: told apart from strangers that got the same number later by their start time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A pid and the clock tick of boot time at which it started (field 22 of /proc/PID/stat, proc(5))."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        return started(self.pid) == self.started

    def kill(self, number: signal.Signals) -> None:
        """Send a signal if it still is that process."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def started(pid: int) -> int | None:
    """When `pid` started, or None if it is gone (a zombie is)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def identify(pid: int) -> Process:
    return Process(pid, started(pid) or 0)


def inside(namespaces: Collection[int]) -> list[Process]:
    """Every process whose network namespace is one of these inodes, but not ourselves."""
    found = []
    for entry in _others():
        with contextlib.suppress(OSError):
            if (entry / "ns/net").stat().st_ino in namespaces:
                found.append(identify(int(entry.name)))
    return found


def running(module: str, below: Path) -> list[Process]:
    """Every process that runs this Python module (`-m`) on a file below a directory, but not ourselves."""
    found = []
    for entry in _others():
        with contextlib.suppress(OSError):
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            if module.encode() in arguments and any(one.startswith(b"%b/" % os.fsencode(below)) for one in arguments):
                found.append(identify(int(entry.name)))
    return found


def _others() -> Iterator[Path]:
    """Every process but ourselves, as /proc shows it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            yield entry


def end(processes: Iterable[Process], *, grace: float) -> None:
    """Ask them to stop, then make them."""
    waiting = [process for process in processes if process.alive]
    for process in waiting:
        process.kill(signal.SIGTERM)
    deadline = time.monotonic() + grace
    while waiting and time.monotonic() < deadline:
        time.sleep(0.01)
        waiting = [process for process in waiting if process.alive]
    for process in waiting:
        process.kill(signal.SIGKILL)
    while any(process.alive for process in waiting):
        time.sleep(0.01)
