"""Lists and watches: the API's two ways to read objects, from bytes to events.

A server that can streams the objects that exist at the start through the watch itself (`sendInitialEvents`): neither
side needs memory for a whole list. Of other servers the list is read in pages first.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from l7proxy.errors import ApiError
from l7proxy.sources.kubernetes.connection import JSON, METADATA, METADATA_LIST, Connection
from l7proxy.sources.kubernetes.kinds import Place

PAGE: Final = 500
MAX_LINE: Final = 1 << 25
"""Bytes of one event. etcd stores objects of 1.5 MB by default."""
INITIAL_END: Final = "k8s.io/initial-events-end"
SILENCE: Final = 150.0
"""Seconds without a byte after which a watch is opened anew. A bookmark comes about once a minute."""
LISTED: Final = 60.0
"""Seconds for one page of a list."""


class _ListMeta(msgspec.Struct):
    version: str = msgspec.field(default="", name="resourceVersion")
    rest: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _MarkMeta(msgspec.Struct):
    version: str = msgspec.field(default="", name="resourceVersion")
    annotations: dict[str, str] = {}


class _Mark(msgspec.Struct):
    metadata: _MarkMeta


class _Status(msgspec.Struct):
    code: int = 0
    reason: str = ""
    message: str = ""


@dataclass(slots=True)
class Found:
    """The object exists, or has changed."""

    raw: msgspec.Raw


@dataclass(slots=True)
class Removed:
    """The object does not exist any more; `raw` is its last version."""

    raw: msgspec.Raw


@dataclass(slots=True)
class Mark:
    """All changes up to `version` have come. `initial_end`: so have all objects that existed at the start."""

    version: str
    initial_end: bool = False


Event = Found | Removed | Mark

_PAGE = msgspec.json.Decoder(_Page)
_EVENT = msgspec.json.Decoder(_Event)
_MARK = msgspec.json.Decoder(_Mark)
_STATUS = msgspec.json.Decoder(_Status)


async def pages(api: Connection, place: Place, *, metadata_only: bool = False) -> AsyncGenerator[list[Event], None]:
    """The objects that exist, and at last a Mark with `initial_end`."""
    query = _chosen(place) | {"limit": str(PAGE)}
    rest = ""
    while True:
        body = await api.request(
            "GET",
            place.path,
            query=query | ({"continue": rest} if rest else {}),
            accept=METADATA_LIST if metadata_only else JSON,
            timeout=LISTED,
        )
        page = _read(_PAGE, body, place)
        yield [Found(raw) for raw in page.items or ()]
        rest = page.metadata.rest
        if not rest:
            yield [Mark(page.metadata.version, initial_end=True)]
            return


async def watch(
    api: Connection, place: Place, since: str, *, seconds: int, silence: float = SILENCE, metadata_only: bool = False
) -> AsyncGenerator[list[Event], None]:
    """Changes since a version; with `since` empty first the objects that exist. Ends after about `seconds`.

    The first batch is empty: the server has accepted. ApiError with status 400 or 422: this server cannot stream lists;
    with 410: it has forgotten `since`.
    """
    query = _chosen(place) | {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
    if since:
        query["resourceVersion"] = since
    else:
        query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
    accept = METADATA if metadata_only else JSON
    async with api.stream(place.path, query, silence=silence, accept=accept) as response:
        yield []
        left = bytearray()
        async for chunk in response.content.iter_any():
            lines = _lines(left, chunk, place)
            yield [_event(line, place) for line in lines if line]


def _chosen(place: Place) -> dict[str, str]:
    return {"fieldSelector": f"metadata.name={place.name}"} if place.name else {}


def _lines(left: bytearray, chunk: bytes, place: Place) -> list[bytes]:
    """The complete lines; the beginning of the next one stays in `left`."""
    if b"\n" not in chunk:
        left += chunk
        if len(left) > MAX_LINE:
            raise ApiError(f"watch of {place.resource}: an event of more than {MAX_LINE} bytes")
        return []
    *lines, rest = chunk.split(b"\n")
    lines[0] = bytes(left) + lines[0]
    left[:] = rest
    return lines


def _event(line: bytes, place: Place) -> Event:
    event = _read(_EVENT, line, place)
    match event.type:
        case "ADDED" | "MODIFIED":
            return Found(event.object)
        case "DELETED":
            return Removed(event.object)
        case "BOOKMARK":
            metadata = _read(_MARK, event.object, place).metadata
            return Mark(metadata.version, initial_end=metadata.annotations.get(INITIAL_END) == "true")
        case _:
            raise _failure(_read(_STATUS, event.object, place), place)


def _failure(status: _Status, place: Place) -> ApiError:
    text = f"watch of {place.resource}: {status.code} {status.message}"
    return ApiError(text, status=status.code, reason=status.reason)


def _read(decoder: msgspec.json.Decoder[Any], data: bytes | msgspec.Raw, place: Place) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ApiError(f"{place.resource}: the answer is not of the Kubernetes API: {error}") from error
