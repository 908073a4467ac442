"""The last known objects on disk: policy stays in force when the agent restarts while the API server is away.

One file per kind, of mode 0600, replaced as a whole: a line that says of which cluster it is, then one line per object.
Secrets are never written: until the server is back, policies that name one work as if it did not exist.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from l7proxy.model.resources import PolicyDocument, Resource, SourceLocation
from l7proxy.policy.lang.options import Options
from l7proxy.sources.decode import Fault, decode
from l7proxy.sources.kubernetes.kinds import Kind
from l7proxy.sources.objects import key_of

log = logging.getLogger(__name__)

FORMAT: Final = 2
SUFFIX: Final = ".jsonl"
FRESH: Final = ".new"
CHUNK: Final = 1000
"""Objects that are written at once."""


class _Head(msgspec.Struct):
    format: int
    cluster: str
    kind: str


@dataclass(frozen=True, slots=True)
class Saved:
    resources: list[Resource]
    age: float
    """Seconds since they were known to be true."""


class SavedObjects:
    """The files of one directory. `cluster`: `Connection.cluster`; objects of another one are not used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "objects"

    def store(self, kind: Kind, cluster: str, resources: Iterable[Resource]) -> None:
        """OSError when the directory cannot be written to."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._path(kind).with_suffix(FRESH)
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(_Head(FORMAT, cluster, kind.name)) + b"\n")
            rest = iter(resources)
            while chunk := b"".join(msgspec.json.encode(_plain(one)) + b"\n" for one in islice(rest, CHUNK)):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path(kind))

    def load(self, kind: Kind, cluster: str, options: Options) -> Saved | None:
        """None if nothing usable was saved; why is logged."""
        path = self._path(kind)
        try:
            with path.open("rb") as file:
                head = msgspec.json.decode(file.readline(), type=_Head)
                if head != _Head(FORMAT, cluster, kind.name):
                    log.warning("%s: not used: it is of another cluster (by URL and CA), or version of l7proxy", path)
                    return None
                found = [*_resources(file, kind, options)]
                age = time.time() - os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s: not used: %s", path, error)
            return None
        return Saved(found, max(age, 0.0))

    def remove(self) -> int:
        """Delete all files, of all clusters. Returns the number of kinds that were saved. OSError."""
        try:
            found = [path for path in self._folder.iterdir() if path.suffix in {SUFFIX, FRESH}]
        except FileNotFoundError:
            return 0
        for path in found:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            self._folder.rmdir()
        return sum(path.suffix == SUFFIX for path in found)

    def _path(self, kind: Kind) -> Path:
        return self._folder / f"{kind.name}{SUFFIX}"


def _plain(resource: Resource) -> Any:
    return resource.document if isinstance(resource, PolicyDocument) else resource


def _resources(lines: Iterable[bytes], kind: Kind, options: Options) -> Iterator[Resource]:
    if kind.resource is not PolicyDocument:
        decoder = msgspec.json.Decoder(kind.resource)
        yield from map(decoder.decode, lines)
        return
    for line in lines:
        document = msgspec.json.decode(line)
        found = decode(document, SourceLocation(str(key_of(document))), options=options)
        if isinstance(found, Fault) and found.placeholder is not None:
            found = found.placeholder
        if isinstance(found, PolicyDocument):
            yield found
