"""Sysctls of this network namespace, also in a container that is not privileged, where /proc/sys is read-only.

Such a container may have the node's /proc/sys/net mounted at /host/proc/sys/net. The files show the network namespace
of the reader, and the kernel lets CAP_NET_ADMIN write them; only the read-only mount is in the way.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc/sys")
HOST: Final = Path("/host/proc/sys")


def exists(name: str) -> bool:
    """`name` is a path: net/ipv4/tcp_migrate_req."""
    return Path(PROC, name).exists()


def read(name: str) -> str:
    """OSError when it cannot be read."""
    return Path(PROC, name).read_text(encoding="ascii").strip()


def write(name: str, value: str, *, host: Path = HOST) -> None:
    """Set it, if it has another value. OSError when that is not possible."""
    if read(name) == value:
        return
    try:
        Path(PROC, name).write_text(value, encoding="ascii")
    except OSError as error:
        if error.errno != errno.EROFS or not Path(host, name).exists():
            raise
        Path(host, name).write_text(value, encoding="ascii")
