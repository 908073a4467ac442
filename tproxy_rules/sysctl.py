"""Sysctls of this network namespace, also in a container that is not privileged, where /proc/sys is read-only.

Such a container may have the node's /proc/sys/net mounted at /host/proc/sys/net. The files show the network namespace
of the reader, and the kernel lets CAP_NET_ADMIN write them; only the read-only mount is in the way.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LOG = logging.getLogger(__name__)
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


@dataclass(frozen=True, slots=True)
class Change:
    """A sysctl that was `before` and was set to `ours`."""

    name: str
    before: str
    ours: str


@dataclass(frozen=True, slots=True)
class Restored:
    """`error`: why a sysctl still has our value; empty if it has its former one again."""

    change: Change
    error: str = ""


class Sysctls:
    """Sets sysctls, and records in a file what they were before, so that `restore` can set them back.

    A value that another program sets later, and that is set to ours again, is the one that is restored. What has our
    value already is not recorded. Without a file nothing is.

    The file belongs in a directory that is lost when the node restarts, as the values are. It has mode 0600.
    """

    def __init__(self, record: Path | None = None) -> None:
        self._record = record

    def set(self, name: str, value: str) -> None:
        """Set it, if it has another value. OSError when that is not possible."""
        before = read(name)
        if before == value:
            return
        if self._record is not None:  # first: an interrupted change is one that need not be undone
            self._note(Change(name, before, value))
        write(name, value)

    def restore(self) -> list[Restored]:
        """Set back all that still have our value, and forget them. OSError or ValueError: the file cannot be read."""
        if self._record is None:
            return []
        changed = self._load()
        done = [_restored(one) for one in changed.values() if _has_our_value(one)]
        left = {one.change.name: one.change for one in done if one.error}
        if left:
            self._save(left)
        else:
            self._record.unlink(missing_ok=True)
        return done

    def _note(self, change: Change) -> None:
        try:
            known = self._load()
        except (OSError, ValueError) as error:
            _LOG.warning("%s: begun anew, since it cannot be read: %s", self._record, error)
            known = {}
        try:
            self._save({**known, change.name: change})
        except OSError as error:
            _LOG.warning("sysctl %s was %s, which cannot be recorded: %s", change.name, change.before, error)

    def _load(self) -> dict[str, Change]:
        assert self._record is not None
        try:
            text = self._record.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        return {one.name: one for one in _changes(json.loads(text))}

    def _save(self, changes: Mapping[str, Change]) -> None:
        assert self._record is not None
        text = json.dumps({one.name: {"before": one.before, "ours": one.ours} for one in changes.values()}, indent=1)
        fresh = self._record.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        fresh.replace(self._record)


def _changes(document: object) -> list[Change]:
    """ValueError if it is no record of ours."""
    if not isinstance(document, dict):
        raise ValueError("must be an object of sysctls")
    return [_change(name, value) for name, value in document.items()]


def _change(name: str, value: object) -> Change:
    parts = name.split("/")
    if parts[0] != "net" or not all(parts) or {".", ".."} & set(parts):
        raise ValueError(f"{name}: must be a path below net")
    match value:
        case {"before": str(before), "ours": str(ours)}:
            return Change(name, before, ours)
    raise ValueError(f"{name}: must have the texts before and ours")


def _has_our_value(change: Change) -> bool:
    """False where it is gone with its interface, or has another value: then it is no longer ours to change."""
    try:
        return read(change.name) == change.ours
    except OSError:
        return False


def _restored(change: Change) -> Restored:
    try:
        write(change.name, change.before)
    except OSError as error:
        return Restored(change, error.strerror or str(error))
    return Restored(change)
