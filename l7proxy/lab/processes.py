"""Processes that the lab started. Their start time distinguishes them from later processes with the same pid."""

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
    """A pid and its start time in clock ticks since boot (field 22 of /proc/PID/stat, proc(5))."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        return started(self.pid) == self.started

    def kill(self, number: signal.Signals) -> None:
        """Send a signal if the pid is still the same process."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def started(pid: int) -> int | None:
    """The start time of `pid`, or None if it does not exist or all of its threads have ended.

    The first thread can end before the others: its state is Z then, but the process still has its sockets and files.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    state, threads = fields[0], int(fields[17])
    return None if state == "X" or (state == "Z" and threads <= 1) else int(fields[19])


def identify(pid: int) -> Process:
    return Process(pid, started(pid) or 0)


def inside(namespaces: Collection[int]) -> list[Process]:
    """Every other process whose network namespace is one of these inodes."""
    found = []
    for entry in _others():
        with contextlib.suppress(OSError):
            if (entry / "ns/net").stat().st_ino in namespaces:
                found.append(identify(int(entry.name)))
    return found


def running(module: str, below: Path) -> list[Process]:
    """Every other process that runs this Python module (`-m`) on a file below a directory."""
    found = []
    for entry in _others():
        with contextlib.suppress(OSError):
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            if module.encode() in arguments and any(one.startswith(b"%b/" % os.fsencode(below)) for one in arguments):
                found.append(identify(int(entry.name)))
    return found


def _others() -> Iterator[Path]:
    """Every other process in /proc."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            yield entry


def end(processes: Iterable[Process], *, grace: float) -> None:
    """SIGTERM, then SIGKILL after `grace` seconds."""
    waiting = [process for process in processes if process.alive]
    for process in waiting:
        process.kill(signal.SIGTERM)
    deadline = time.monotonic() + grace
    while waiting and time.monotonic() < deadline:
        time.sleep(0.01)
        waiting = [process for process in waiting if process.alive]
    kill(waiting)


def kill(processes: Iterable[Process]) -> None:
    """SIGKILL, and wait for the end: then their ports are free."""
    waiting = list(processes)
    for process in waiting:
        process.kill(signal.SIGKILL)
    while any(process.alive for process in waiting):
        time.sleep(0.01)
