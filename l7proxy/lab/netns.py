"""Network namespaces: creating, entering and removing them.

A thread may be in another network namespace than its process, and a socket stays in the one it was made in (setns(2),
network_namespaces(7)). So work inside a namespace is a function run in a separate thread, which then ends. Named
namespaces are bind mounts in /run/netns, where ip-netns(8) finds them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from l7proxy.errors import ConfigError

T = TypeVar("T")

NETNS_DIR: Final = Path("/run/netns")
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWNET: Final = 0x40000000
MS_NOSUID_NOEXEC_NODEV: Final = 0x2 | 0x8 | 0x4
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MS_SLAVE: Final = 0x80000
MNT_DETACH: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces (unshare(2))."""
    _checked(_libc.unshare(flags), "unshare")


def enter(path: Path | str, kind: int) -> None:
    """Move the calling thread into the namespace at `path` (setns(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.setns(descriptor, kind), f"setns {path}")
    finally:
        os.close(descriptor)


def mount(source: str, target: Path | str, kind: str | None, flags: int) -> None:
    arguments = [text.encode() if text is not None else None for text in (source, str(target), kind)]
    _checked(_libc.mount(*arguments, ctypes.c_ulong(flags), None), f"mount {target}")


def unmount(target: Path | str) -> None:
    _checked(_libc.umount2(str(target).encode(), MNT_DETACH), f"umount {target}")


def in_thread(function: Callable[[], T]) -> T:
    """Run `function` in a thread that ends afterwards, because it may have changed its namespace."""
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
            failures.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def path_of(name: str) -> Path:
    return NETNS_DIR / name


def inside(name: str, function: Callable[[], T]) -> T:
    """The result of `function`, run in the named namespace. Its sockets stay there."""

    def body() -> T:
        enter(path_of(name), CLONE_NEWNET)
        return function()

    return in_thread(body)


def create(name: str) -> None:
    """Create a named network namespace."""
    path = path_of(name)
    NETNS_DIR.mkdir(mode=0o755, exist_ok=True)
    path.touch(mode=0o444, exist_ok=False)

    def body() -> None:
        unshare(CLONE_NEWNET)
        mount("/proc/thread-self/ns/net", path, None, MS_BIND)

    try:
        in_thread(body)
    except PermissionError as error:
        path.unlink()
        raise ConfigError(
            "no permission to create network namespaces: run as root, or enable user namespaces"
        ) from error
    except OSError:
        path.unlink()
        raise


def remove(name: str) -> None:
    """Remove a named namespace, if it exists. The namespace itself lives on while a process is inside."""
    path = path_of(name)
    _uncover(path)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        in_thread(lambda: _remove_covered(path))


def _uncover(path: Path) -> None:
    """Unmount everything that is mounted there."""
    with contextlib.suppress(OSError):  # EINVAL: nothing is mounted; ENOENT: no such file
        while True:
            unmount(path)


def _remove_covered(path: Path) -> None:
    """Remove a file that has a mount which cannot be reached, because another mount covers its directory.

    ip-netns(8) mounts the directory over itself when it adds its first name. Earlier mounts in it then exist twice, and
    the lower one has no path. Unlinking a file removes its mounts in all other mount namespaces
    (mount_namespaces(7), "Restrictions on mount namespaces"), so it is done in a new one with nothing on top.
    """
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    _uncover(NETNS_DIR)
    _uncover(path)
    path.unlink(missing_ok=True)


def inodes(names: Iterable[str]) -> set[int]:
    """Inode numbers of the namespaces, to find the processes inside (compare /proc/PID/ns/net)."""
    return {path_of(name).stat().st_ino for name in names if path_of(name).exists()}


def set_sysctl(key: str, value: int | str) -> None:
    """/proc/sys/net shows the namespace of the reader: call this inside. The parts of `key` are joined by `/`."""
    Path("/proc/sys", key).write_text(f"{value}")
