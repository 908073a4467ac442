"""Runs the exporters of `flow-logs-config`, and follows the file: what changes in it is in force without a restart.

An invalid file changes nothing, and its fault is shown in `status` until it is valid again. An exporter that changes is
replaced where it stands: no flow is written twice or left out between the two.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from l7proxy.errors import ConfigError, SourceError
from l7proxy.flows.ring import Ring
from l7proxy.flows.sinks import exporters
from l7proxy.flows.sinks.exporters import Exporter
from l7proxy.flows.sinks.feed import Feed
from l7proxy.sources.files.notify import ChangeNotifier
from l7proxy.sources.files.yaml_lines import Document, read_filled

log = logging.getLogger(__name__)

CHECK: Final = 5.0
"""Seconds after which the file is looked at without a notification."""


class Exporters:
    """`feeds`: those of the process; the exporters' are added to it and taken out of it."""

    def __init__(self, path: Path, ring: Ring, feeds: list[Feed]) -> None:
        self.problem = ""
        """Why the file as it is now is not in force; empty: it is."""
        self.changes: Counter[str] = Counter()
        """Since the start: add, update, remove of an exporter; failure: a file that could not be used."""
        self.digest = 0
        """Of the content that is in force: 64 bits."""
        self.applied = 0.0
        """When it came into force: seconds since 1970."""
        self._path = path
        self._ring = ring
        self._feeds = feeds
        self._running: dict[str, tuple[Exporter, Feed, asyncio.Task[None]]] = {}
        self._content: bytes | None = None
        self._wanted: list[Exporter] = []
        self._look()
        if self.problem:
            raise ConfigError(f"flow-logs-config: {self.problem}")

    def active(self, now: float) -> dict[str, bool]:
        """Name → whether the exporter still writes, or its `end` is past. `now`: seconds since 1970."""
        return {name: exporter.writes_at(now) for name, (exporter, _, _) in self._running.items()}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """At the end of the block, what has come by then is still written."""
        async with asyncio.TaskGroup() as tasks:
            await self._apply(tasks)
            following = tasks.create_task(self._follow(tasks), name="exporters")
            try:
                yield
            finally:
                following.cancel()
                for _, _, task in self._running.values():
                    task.cancel()

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        with ChangeNotifier() as notifier:
            while True:
                notifier.watch(self._path.parent)
                await notifier.wait(CHECK)
                if self._look():
                    await self._apply(tasks)

    def _look(self) -> bool:
        """Whether the file asks for something else now."""
        try:
            content = self._path.read_bytes()
            if content == self._content:
                return False
            self._content = content
            self._wanted = exporters.read(_decoded(content))
        except OSError as error:
            self._content = None
            self._report(f"{self._path}: {error.strerror or error}")
            return False
        except (ConfigError, SourceError) as error:
            self._report(f"{self._path}: {error}")
            return False
        self._report("")
        return True

    def _report(self, problem: str) -> None:
        if problem and problem != self.problem:
            self.changes["failure"] += 1
            log.error("flow-logs-config: %s; the exporters of the last good file stay in force", problem)
        self.problem = problem

    async def _apply(self, tasks: asyncio.TaskGroup) -> None:
        wanted = {one.name: one for one in self._wanted}
        starts: dict[str, int] = {}
        for name, (exporter, feed, task) in list(self._running.items()):
            if wanted.get(name) != exporter:
                await _ended(task)
                del self._running[name]
                self._feeds.remove(feed)
                starts[name] = feed.position
                if name not in wanted:
                    self.changes["remove"] += 1
        for name, exporter in wanted.items():
            if name not in self._running:
                self.changes["update" if name in starts else "add"] += 1
                start = max(starts.get(name, self._ring.end), self._ring.oldest)
                feed = Feed(f"exporter {name}", exporters.sink_of(exporter), self._ring, start=start)
                self._feeds.append(feed)
                task = tasks.create_task(feed.run(), name=feed.name)
                self._running[name] = (exporter, feed, task)
        self.digest = int.from_bytes(hashlib.sha256(self._content or b"").digest()[:8], "big")
        self.applied = time.time()
        log.info("flow-logs-config: exporters in force: %s", ", ".join(wanted) or "none")


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


def _decoded(content: bytes) -> object:
    documents = read_filled(content)
    if not documents:
        return {}
    (first, *rest) = documents
    if not isinstance(first, Document):
        raise first.error
    if rest:
        raise ConfigError("must be one document")
    return first.value
