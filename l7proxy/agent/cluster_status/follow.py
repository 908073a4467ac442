"""Follows a few objects of the API server: a list, then a watch from there, for as long as the caller iterates.

At rest it costs no request but the watch. A failure is logged once, and tried again with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Mapping, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from l7proxy.errors import ApiError
from l7proxy.sources.kubernetes.connection import Connection

log = logging.getLogger(__name__)

PAGE: Final = "500"
WATCH_SECONDS: Final = (1500.0, 2700.0)
"""How long one watch lasts: the agents' are spread, so that they are not renewed together."""
SILENCE: Final = 180.0
"""Seconds without a byte after which a watch counts as dead: bookmarks come every minute or so."""
FIRST_PAUSE: Final = 1.0
LAST_PAUSE: Final = 120.0
MAX_LINE: Final = 4 << 20
GONE: Final = 410


class Metadata(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""  # noqa: N815 -- as in the API
    annotations: dict[str, str] = {}


class _Listing(msgspec.Struct):
    metadata: Mapping[str, str | int | None] = {}
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Versioned(msgspec.Struct):
    metadata: Metadata = msgspec.field(default_factory=Metadata)
    code: int = 0


@dataclass(frozen=True, slots=True)
class Listed:
    """All objects, as they are now."""

    objects: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    object: bytes
    deleted: bool = False


class Retry:
    """The pauses between attempts, and one log line for each new reason.

    `what` names the purpose; `problems` holds its present fault, for `l7proxy status`.
    """

    def __init__(self, what: str, problems: MutableMapping[str, str]) -> None:
        self._what = what
        self._problems = problems
        self._pause = 0.0

    def well(self) -> None:
        if self._problems.pop(self._what, ""):
            log.info("%s: works again", self._what)
        self._pause = 0.0

    def failed(self, error: ApiError) -> float:
        """The pause until the next attempt, in seconds."""
        if str(error) != self._problems.get(self._what):
            log.warning("%s: %s", self._what, error)
        self._problems[self._what] = str(error)
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LAST_PAUSE)
        return max(self._pause * random.uniform(0.5, 1.5), error.retry_after or 0.0)


async def listed(api: Connection, path: str, query: Mapping[str, str]) -> tuple[list[bytes], str]:
    """All objects, page by page, and the version of the list. ApiError."""
    found: list[bytes] = []
    page = {**query, "limit": PAGE}
    while True:
        body = await api.request("GET", path, query=page)
        part = decoded(body, _Listing, path)
        found += [bytes(item) for item in part.items or ()]
        more = part.metadata.get("continue")
        if not more:
            return found, str(part.metadata.get("resourceVersion") or "")
        page["continue"] = str(more)


async def follow(
    api: Connection, path: str, query: Mapping[str, str], retry: Retry
) -> AsyncGenerator[Listed | Changed, None]:
    """Listed, then changes; Listed again when changes may have been missed. Without end."""
    loop = asyncio.get_running_loop()
    version = ""
    while True:
        try:
            if not version:
                objects, version = await listed(api, path, query)
                retry.well()
                yield Listed(tuple(objects))
            began = loop.time()
            async with aclosing(_watched(api, path, query, version)) as events:
                async for event in events:
                    retry.well()
                    known = decoded(bytes(event.object), _Versioned, path)
                    if event.type == "ERROR":
                        raise ApiError(f"GET {path}: the watch ended with {known.code}", status=known.code or 500)
                    version = known.metadata.resourceVersion or version
                    if event.type != "BOOKMARK":
                        yield Changed(bytes(event.object), deleted=event.type == "DELETED")
            if loop.time() < began + FIRST_PAUSE:  # a server that is stopping ends watches at once
                await asyncio.sleep(FIRST_PAUSE * random.uniform(0.5, 1.5))
        except ApiError as error:
            if error.status:  # refused, or too old: nothing is known about what happened meanwhile
                version = ""
            if error.status == GONE:
                continue
            await asyncio.sleep(retry.failed(error))


async def _watched(api: Connection, path: str, query: Mapping[str, str], version: str) -> AsyncGenerator[_Event, None]:
    """The events of one watch, until the server ends it."""
    wanted = {
        **query,
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": version,
        "timeoutSeconds": str(int(random.uniform(*WATCH_SECONDS))),
    }
    async with api.stream(path, wanted, silence=SILENCE) as response:
        rest = b""
        async for chunk in response.content.iter_any():
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LINE:
                raise ApiError(f"GET {path}: an event of more than {MAX_LINE} bytes")
            for line in lines:
                if line.strip():
                    yield decoded(line, _Event, path)


T = TypeVar("T")


def decoded(body: bytes, kind: type[T], path: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise ApiError(f"{path}: unexpected answer: {error}") from error
