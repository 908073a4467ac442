"""Listens on a unix socket that is open to our user and root only, at every moment. A socket in use is not replaced."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from l7proxy.errors import ConfigError

_UCRED: Final = struct.Struct("3i")  # unix(7): pid, uid, gid
PROBE_SECONDS: Final = 1.0
MAX_PATH: Final = 107
"""Bytes of a path in sockaddr_un: unix(7)."""


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """`listen`; at the end, remove the socket file, unless a later process has put its own there."""
    listener = listen(path)
    with removing(path):
        yield listener


@contextmanager
def removing(path: Path) -> Iterator[None]:
    """At the end, remove the socket file that is there now, unless a later process has put its own there."""
    ours = os.open(path, os.O_PATH)  # while it is open, no other file gets its inode number
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(ours), path.stat()):
                path.unlink()
        os.close(ours)


def listen(path: Path) -> socket.socket:
    """Bind and listen, mode 0600. A stale socket file is replaced; a live one, or too long a path, is a ConfigError."""
    make_free(path, "run_dir")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)  # before listen(): connecting is not possible until then
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{path}: cannot listen: {error.strerror or error}") from error
    return listener


def is_ours(transport: asyncio.BaseTransport) -> bool:
    """Whether the peer is root or our own user, by SO_PEERCRED."""
    credentials = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    return uid in (0, os.geteuid())


def make_free(path: Path, setting: str) -> None:
    """Remove a stale socket file. ConfigError, naming the setting, if a process listens there or it is another file."""
    if len(os.fsencode(path)) > MAX_PATH:
        raise ConfigError(f"{path}: the path of a socket has at most {MAX_PATH} bytes: set a shorter {setting}")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket: remove it, or set another {setting}")
    if _answers(path):
        raise ConfigError(f"{path} is in use by another l7proxy process: stop it, or set another {setting}")
    path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    """Whether a live process listens there, even one with a full backlog."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True
