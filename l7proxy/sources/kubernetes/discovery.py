"""Under which path the cluster has each kind that it may lack, followed as CustomResourceDefinitions come and go.

A kind is there if its CustomResourceDefinition exists, or an APIService of its group (Calico's API server). Only then
is the server asked for the versions: what it answers shortly after its own start may lack kinds that exist. A kind
whose definition exists but is not served yet is undecided, and is asked for again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import msgspec

from l7proxy.errors import ApiError, SourceError
from l7proxy.sources.kubernetes import trim
from l7proxy.sources.kubernetes.collection import Names
from l7proxy.sources.kubernetes.connection import Connection
from l7proxy.sources.kubernetes.kinds import API_SERVICES, DEFINITIONS, KINDS, Kind, Place
from l7proxy.sources.kubernetes.reflector import Reflector, Timing
from l7proxy.sources.kubernetes.trim import Trimmer

AUTOMATIC: Final = "kube-aggregator.kubernetes.io/automanaged"
"""Label of the APIServices that the server makes itself, for the groups of CustomResourceDefinitions."""


class _Version(msgspec.Struct):
    name: str = msgspec.field(name="groupVersion")


class _Group(msgspec.Struct):
    versions: list[_Version] = []


class _Resource(msgspec.Struct):
    name: str


class _Resources(msgspec.Struct):
    resources: list[_Resource] = []


class Discovery:
    """`places`: name of a kind → its place, or None if the cluster has none; a kind that is missing is undecided.
    `problems`: why some are. `lost`: why the server could not be asked.

    `changed` is called when one of these or the state of a reflector has changed.
    """

    def __init__(self, api: Connection, changed: Callable[[], None], timing: Timing) -> None:
        self.places: dict[str, Place | None] = {}
        self.problems: list[SourceError] = []
        self.lost: ApiError | None = None
        self._api = api
        self._changed = changed
        self._timing = timing
        self._news = asyncio.Event()
        self._definitions, self._services = Names(self._news.set), Names(self._news.set, without=AUTOMATIC)
        self.reflectors = (
            self._reflector(DEFINITIONS, self._definitions),
            self._reflector(API_SERVICES, self._services),
        )

    def _reflector(self, place: Place, names: Names) -> Reflector:
        trimmer = Trimmer(trim.Plain, "PartialObjectMetadata", "meta.k8s.io/v1")
        return Reflector(self._api, place, names, trimmer, self._told, timing=self._timing, metadata_only=True)

    def _told(self) -> None:
        if not self.places:
            self._news.set()  # it may be synced
        self._changed()

    async def run(self) -> None:
        attempt = 0
        while True:
            pause = self._timing.first * 2.0 ** min(attempt, 16) * random.uniform(0.5, 1.0)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause, self._timing.longest) if attempt else None):
                    await self._news.wait()
                    attempt = 0
            self._news.clear()
            if all(reflector.state.synced for reflector in self.reflectors):
                attempt = attempt + 1 if await self._look() else 0

    async def _look(self) -> bool:
        """Find the place of each kind anew. True if some are undecided."""
        before = dict(self.places), [str(problem) for problem in self.problems], str(self.lost)
        answers: dict[str, list[str]] = {}
        problems: dict[str, SourceError] = {}
        self.lost = None
        for kind in (kind for kind in KINDS if not kind.built_in):
            try:
                self.places[kind.name] = await self._place(kind, answers)
            except SourceError as error:
                problems[str(error)] = error
            except ApiError as error:
                if error.lost:
                    self.lost = error
                    break
                problems[str(error)] = SourceError(str(error))
        self.problems = [problems[text] for text in sorted(problems)]
        if before != (self.places, sorted(problems), str(self.lost)):
            self._changed()
        return bool(problems or self.lost)

    async def _place(self, kind: Kind, answers: dict[str, list[str]]) -> Place | None:
        for group in kind.groups:
            named = f"{kind.plural}.{group}"
            defined = named in self._definitions.names
            if not defined and not any(name.partition(".")[2] == group for name in self._services.names):
                continue
            served = await self._ask(f"/apis/{group}", answers)
            for version in _preferred(kind, served):
                if kind.plural in await self._ask(f"/apis/{version}", answers):
                    return Place(version, kind.plural)
            if defined:
                raise SourceError(
                    "its CustomResourceDefinition exists, but the server does not serve it yet", file=named
                )
        return None

    async def _ask(self, path: str, answers: dict[str, list[str]]) -> list[str]:
        """The names in a discovery document: versions of a group, or plurals of a version; none if it is missing."""
        if path not in answers:
            try:
                body = await self._api.request("GET", path)
            except ApiError as error:
                if error.status != 404:
                    raise
                body = b"{}"
            try:
                answers[path] = _names(body, versions=path.count("/") == 2)
            except msgspec.MsgspecError as error:
                raise ApiError(f"GET {path}: the answer is not of the Kubernetes API: {error}") from error
        return answers[path]


def _names(body: bytes, *, versions: bool) -> list[str]:
    if versions:
        return [one.name for one in msgspec.json.decode(body, type=_Group).versions]
    return [one.name for one in msgspec.json.decode(body, type=_Resources).resources]


def _preferred(kind: Kind, served: list[str]) -> Iterator[Any]:
    """Versions that we know, then others: their policies are refused by name, which needs their objects."""
    yield from (version for version in kind.versions if version in served)
    yield from (version for version in served if version not in kind.versions)
