"""CPU pinning. The proxy, with its agent, has one core; client and server have the others.

On a machine with one core all share it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cores:
    proxy: tuple[int, ...]
    others: tuple[int, ...]

    def pin_proxy(self, command: list[str]) -> list[str]:
        return _pinned(self.proxy, command)

    def pin_other(self, command: list[str]) -> list[str]:
        return _pinned(self.others, command)


def pinned() -> Cores:
    """Chosen from the cores that this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores(tuple(usable[:1]), tuple(usable[1:] or usable))


def unpinned() -> Cores:
    """No pinning: if other programs use the machine, a pinned core may be a busy one."""
    usable = tuple(sorted(os.sched_getaffinity(0)))
    return Cores(usable, usable)


def _pinned(where: tuple[int, ...], command: list[str]) -> list[str]:
    """Uses taskset(1): children of the command stay on these cores, too."""
    return ["taskset", "--cpu-list", ",".join(map(str, where)), *command]
