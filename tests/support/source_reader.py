"""Reads a source as the agent does, and checks the laws that hold for any batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from l7proxy.model.resources import Change, Delete, Pod, Resource, ResourceKey, Synced, Upsert
from l7proxy.sources.source import Source, SourceHealth


class Reader:
    """Applies the batches of a source, and checks the laws that hold for any batch."""

    def __init__(self, batches: AsyncGenerator[list[Change], None], source: Source, patience: float = 10) -> None:
        """`patience`: seconds that a batch may take."""
        self._batches = batches
        self._patience = patience
        self.source = source
        self.resources: dict[ResourceKey, Resource] = {}
        self.synced: list[type[Resource]] = []
        self.events: list[str] = []

    async def next(self) -> list[Change]:
        async with asyncio.timeout(self._patience):
            batch = await anext(self._batches)
        keys = [change.resource.key if isinstance(change, Upsert) else change.key
                for change in batch if not isinstance(change, Synced)]  # fmt: skip
        assert len(keys) == len(set(keys)), "a key has one event in a batch"
        removals = [isinstance(change, Delete) for change in batch]
        assert removals == sorted(removals, reverse=True), "removals come first"
        for change in batch:
            self._apply(change)
        return batch

    def _apply(self, change: Change) -> None:
        match change:
            case Upsert(resource):
                assert self.resources.get(resource.key) != resource, "an unchanged object causes no event"
                self.resources[resource.key] = resource
                self.events.append(f"+{resource.key}")
            case Delete(key):
                del self.resources[key]  # KeyError: it does not exist
                self.events.append(f"-{key}")
            case Synced(kind):
                assert kind not in self.synced, "Synced comes once"
                self.synced.append(kind)

    async def until(self, done: Callable[[], bool]) -> None:
        while not done():
            await self.next()

    async def names(self, *expected: str) -> None:
        await self.until(lambda: sorted(map(str, self.resources)) == sorted(expected))

    async def problems(self, count: int) -> list[str]:
        await self.until(lambda: len(self.health.problems) == count)
        return [str(problem) for problem in self.health.problems]

    @property
    def health(self) -> SourceHealth:
        return self.source.health()

    def address(self, name: str) -> tuple[str, ...]:
        found = self.resources[ResourceKey("Pod", "default", name)]
        assert isinstance(found, Pod)
        return found.addresses
