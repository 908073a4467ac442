"""A source in memory: a client of an API server that lists plain objects, and can be cut off.

Each object has a path, as in an API. A list replaces the list before, so what is missing in it was deleted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from l7proxy.errors import SourceError
from l7proxy.model.resources import Change, Resource, ResourceKey
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.sources.decode import decode, decoded
from l7proxy.sources.last_good import settle
from l7proxy.sources.source import NEVER, SYNCED, SourceHealth, differences


class Server:
    """The objects by path. `version` grows with each change."""

    def __init__(self) -> None:
        self.objects: dict[str, Mapping[str, Any]] = {}
        self.version = 0
        self.reachable = True
        self.changed = asyncio.Event()

    def put(self, path: str, value: Mapping[str, Any]) -> None:
        self.objects[path] = value
        self._next()

    def delete(self, path: str) -> None:
        del self.objects[path]
        self._next()

    def connect(self, *, reachable: bool) -> None:
        self.reachable = reachable
        self.changed.set()

    def _next(self) -> None:
        self.version += 1
        self.changed.set()


class ObjectSource:
    """A Source of the server's objects."""

    def __init__(self, server: Server, options: Options = DEFAULT) -> None:
        self._server = server
        self._options = options
        self._seen: dict[str, Mapping[str, Any]] = {}
        self._good: dict[str, dict[ResourceKey, Resource]] = {}
        self._active: dict[ResourceKey, Resource] = {}
        self._problems: dict[str, tuple[SourceError, ...]] = {}
        self._contact = NEVER
        self._version = 0

    def health(self) -> SourceHealth:
        problems = tuple(problem for path in sorted(self._problems) for problem in self._problems[path])
        return SourceHealth(
            "objects", "memory", {"objects": self._version}, problems, self._server.reachable, self._contact
        )

    async def watch(self) -> AsyncGenerator[list[Change], None]:
        yield [*self._list(), *SYNCED]
        while True:
            await self._server.changed.wait()
            self._server.changed.clear()
            yield self._list() if self._server.reachable else []

    def _list(self) -> list[Change]:
        before, active = self._active, dict[ResourceKey, Resource]()
        objects = dict(self._server.objects)
        for path in self._seen.keys() - objects.keys():
            self._good.pop(path), self._problems.pop(path)
        for path, value in sorted(objects.items()):
            found = decoded([decode(value, options=self._options)])
            good, placeholders = settle(found, self._good.get(path, {}))
            self._good[path] = good
            self._problems[path] = tuple(fault.error for fault in found.faults)
            active |= placeholders | good
        self._seen, self._active, self._contact = objects, active, time.monotonic()
        self._version = self._server.version
        return differences(before, active)
