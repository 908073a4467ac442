"""Resource use of processes: CPU time, memory, descriptors, from /proc (proc(5))."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Used:
    """Seconds of CPU in user mode and in the kernel."""

    user: float = 0.0
    system: float = 0.0

    @property
    def total(self) -> float:
        return self.user + self.system

    def __sub__(self, other: Used) -> Used:
        return Used(self.user - other.user, self.system - other.system)

    def __add__(self, other: Used) -> Used:
        return Used(self.user + other.user, self.system + other.system)


def used(*pids: int) -> Used:
    """The total of these processes, all threads, without ended children."""
    user = system = 0
    for pid in pids:
        fields = _stat(pid)
        user += int(fields[11])
        system += int(fields[12])
    return Used(user / TICK, system / TICK)


def rss_mib(pid: int) -> float:
    """Resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def peak_mib(pid: int) -> float:
    """Peak resident memory (VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/fd").exists()


def open_files(pid: int) -> list[str]:
    """The target of each descriptor: a path, or `socket`, `pipe`, `anon_inode…` without its number."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()).partition(":[")[0])
    return found


def children(pid: int) -> list[int]:
    """Direct children, found by their parent pid."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int(_stat(int(entry.name))[1]) == pid:
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on; the second, the name, can contain any character."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
