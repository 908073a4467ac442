"""Keeps one collection equal to the objects that the server has at one place, for as long as it runs.

    list ──► watch ──► the stream ends: watch again from the last version
      ▲        └─────► 410 Gone: list again, and remove what is missing in it
      └ pause ◄─────── any other error: after a pause, from where it was

While the server cannot be reached nothing is removed. Pauses double up to a limit and are random, so that the agents of
a large cluster do not return at once; a server's Retry-After is kept.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from l7proxy.errors import ApiError
from l7proxy.sources.kubernetes import transfer
from l7proxy.sources.kubernetes.collection import Sink
from l7proxy.sources.kubernetes.connection import Connection
from l7proxy.sources.kubernetes.kinds import Place
from l7proxy.sources.kubernetes.transfer import Event, Found, Mark, Removed
from l7proxy.sources.kubernetes.trim import Trimmer
from l7proxy.sources.source import NEVER

log = logging.getLogger(__name__)

CANNOT_STREAM: Final = (400, 422)
NO_SUCH_VERSION: Final = (400, 404, 410, 504)
BREATH: Final = 100
"""Objects that are decoded before other tasks run."""
STEADY: Final = 5.0
"""Seconds that a watch must have lasted for the next pause to be the first one."""
LONGEST_ASKED: Final = 120.0
"""Seconds of a Retry-After that is obeyed."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `watch`: the shortest and the longest life of a watch. `first`, `longest`: pauses after an error.
    `grace`: how long a start waits for the server before it takes what was saved."""

    silence: float = transfer.SILENCE
    watch: tuple[float, float] = (300.0, 600.0)
    first: float = 0.2
    longest: float = 30.0
    grace: float = 5.0


@dataclass(slots=True)
class State:
    """`synced`: all objects of the start have come. `error`: why the last attempt failed. `contact`: time.monotonic()
    of the last word from the server. `version`: of the newest object or list that came. `cluster`: whose objects they
    are (`Connection.cluster`)."""

    synced: bool = False
    error: ApiError | None = None
    contact: float = NEVER
    version: str = ""
    cluster: str = ""


class Reflector:
    """One place of the API. `changed` is called when `state` has changed."""

    def __init__(
        self,
        api: Connection,
        place: Place,
        sink: Sink,
        trimmer: Trimmer,
        changed: Callable[[], None],
        *,
        timing: Timing | None = None,
        metadata_only: bool = False,
    ) -> None:
        self.place = place
        self.state = State()
        self._api = api
        self._sink = sink
        self._trim = trimmer
        self._changed = changed
        self._timing = timing or Timing()
        self._metadata_only = metadata_only
        self._since = ""
        """The version from which a watch can go on; empty: the objects must be listed."""
        self._cluster = ""
        """The cluster that is read, of which `_since` is a version."""
        self._streams = True
        self._failures = 0

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                await self._follow()
                error = None
            except ApiError as caught:
                error = caught
            if time.monotonic() - began > STEADY:
                self._failures = 0
            if error is not None:
                self._failed(error)
            if error is not None or time.monotonic() - began < STEADY:
                await asyncio.sleep(self._pause(error))
                self._failures += 1

    async def _follow(self) -> None:
        """Read until the stream ends."""
        if self._cluster != self._api.cluster:
            self._cluster, self._since = self._api.cluster, ""
        if self._since:
            await self._take(self._watch())
        elif self._streams:
            try:
                await self._take(self._watch())
            except ApiError as error:
                if error.status not in CANNOT_STREAM:
                    raise
                self._streams = False
        if not self._since and not self._streams:
            await self._take(transfer.pages(self._api, self.place, metadata_only=self._metadata_only))
            await self._take(self._watch())

    def _watch(self) -> AsyncGenerator[list[Event], None]:
        seconds = max(1, round(random.uniform(*self._timing.watch)))
        return transfer.watch(
            self._api,
            self.place,
            self._since,
            seconds=seconds,
            silence=self._timing.silence,
            metadata_only=self._metadata_only,
        )

    async def _take(self, batches: AsyncGenerator[list[Event], None]) -> None:
        """Apply events. Before the end of a list nothing is removed that the list may still hold."""
        listed: set[Any] | None = None if self._since else set()
        async with aclosing(batches):
            async for events in batches:
                if self._cluster != self._api.cluster:
                    raise ApiError(f"{self.place.resource}: the cluster is another one now", status=410)
                for count, event in enumerate(events, 1):
                    listed = self._apply(event, listed)
                    if count % BREATH == 0:
                        await asyncio.sleep(0)
                self._heard()
        if listed is not None:
            raise ApiError(f"{self.place.resource}: the list ended too early")

    def _apply(self, event: Event, listed: set[Any] | None) -> set[Any] | None:
        """The names that the present list has had so far; None when it is complete."""
        match event:
            case Found(raw):
                value, version = self._read(raw)
                key = self._sink.put(value)
                if listed is not None:
                    listed.add(key)
                else:
                    self._at(version)
            case Removed(raw):
                value, version = self._read(raw)
                self._sink.remove(value)
                if listed is None:
                    self._at(version)
            case Mark(version, initial_end):
                if initial_end and listed is not None:
                    self._sink.keep_only(listed)
                    listed = None
                    self._at(version)
                    if not self.state.synced or self.state.cluster != self._cluster:
                        self.state.synced, self.state.cluster = True, self._cluster
                        self._changed()
                elif listed is None and version:
                    self._since = version
                    self._failures = 0
        return listed

    def _read(self, raw: msgspec.Raw) -> tuple[dict[str, Any], str]:
        try:
            return self._trim(raw)
        except msgspec.DecodeError as error:
            raise ApiError(f"{self.place.resource}: an object is not JSON: {error}") from error

    def _at(self, version: str) -> None:
        if version:
            self._since = self.state.version = version

    def _heard(self) -> None:
        self.state.contact = time.monotonic()
        if self.state.error is not None:
            self.state.error = None
            self._changed()

    def _failed(self, error: ApiError) -> None:
        """A version that the server does not know, of the past or (of another etcd) of the future, is given up."""
        if error.status in NO_SUCH_VERSION or (self._failures > 1 and error.status >= 500):
            self._since = ""
        if error.status != 410:
            self.state.error = error
            self._changed()

    def _pause(self, error: ApiError | None) -> float:
        pause = min(self._timing.longest, self._timing.first * 2.0 ** min(self._failures, 16))
        asked = min(error.retry_after or 0.0, LONGEST_ASKED) if error is not None else 0.0
        return asked + pause * random.uniform(0.5, 1.0)
