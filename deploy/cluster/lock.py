"""One command at a time: an exclusive lock on a directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive(directory: Path, mode: int = 0o755) -> Iterator[Path]:
    """Make the directory, and hold its lock. The lock ends with the process, however that ends.

    The holder may remove or rename the directory: who waited for it then makes a new one.
    """
    while True:
        descriptor = _opened(directory, mode)
        if descriptor is None:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is(directory, descriptor):
                yield directory
                return
        finally:
            os.close(descriptor)


def _opened(directory: Path, mode: int) -> int | None:
    """Made if it is not there. None if its holder has moved it away meanwhile."""
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, FileExistsError):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(directory.lstat().st_mode):
                raise
        return None


def _is(directory: Path, descriptor: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(directory.stat(), os.fstat(descriptor))
    return False


def empty(directory: Path) -> bool:
    """Remove all that is in a directory. False if there was nothing."""
    entries = list(directory.iterdir())
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return bool(entries)
