"""A Source of the resources of a Kubernetes cluster.

    Discovery ─► one Reflector per kind ─► its Collection ─┐
                                     PolicyDocuments ► NamedSecrets ► one Reflector per Secret
                                                           └─► batches of changes, SavedObjects

A kind is synced when all its objects have come, or when the cluster has no such kind. A kind that must not be read, or
that the server cannot say anything about, is not: the node then stays as it is (undecided means closed). If the server
cannot be reached at the start, what was saved of it last is taken. A Secret that must not be read counts as missing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from l7proxy.errors import ApiError, SourceError
from l7proxy.model import resources
from l7proxy.model.resources import Change, Delete, Pod, PolicyDocument, Resource, Synced, Upsert
from l7proxy.policy.headers import SecretName
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.sources.kubernetes.collection import Collection
from l7proxy.sources.kubernetes.connection import Connection
from l7proxy.sources.kubernetes.discovery import Discovery
from l7proxy.sources.kubernetes.kinds import KINDS, SECRET, Kind, Place
from l7proxy.sources.kubernetes.reflector import Reflector, Timing
from l7proxy.sources.kubernetes.saved import SavedObjects
from l7proxy.sources.kubernetes.secrets import MOST, NamedSecrets
from l7proxy.sources.kubernetes.trim import ProbedPod, Trimmer
from l7proxy.sources.source import NEVER, SourceHealth

log = logging.getLogger(__name__)

COALESCE: Final = 0.005
"""Seconds that a batch waits for more changes."""
SAVE_PAUSE: Final = (1.0, 1000.0)
"""A kind is saved at most once per so many seconds, and at most so many objects of it per second."""


@dataclass(slots=True, eq=False)
class _Followed:
    """What is known of one kind, or of one Secret. `reflector` is None while there is no place to read it from."""

    kind: Kind
    collection: Collection
    reflector: Reflector | None = None
    task: asyncio.Task[None] | None = None
    absent: bool = False
    restored: bool = False
    sought: bool = False
    """What was saved of it has been looked for."""
    contact: float = NEVER
    """time.monotonic() of what was restored."""
    saved: float = NEVER
    unsaved: bool = True
    """Also when it is empty: a file without objects says so."""
    saved_as: str = ""
    """The cluster that it was saved for."""

    @property
    def current(self) -> bool:
        """What the server has is known."""
        return self.absent or (self.reflector is not None and self.reflector.state.synced)

    @property
    def error(self) -> ApiError | None:
        return self.reflector.state.error if self.reflector else None


@dataclass(slots=True)
class _Shown:
    """Of the batch that was yielded last."""

    problems: tuple[SourceError, ...] = ()
    detail: dict[str, int | str] = field(default_factory=dict)
    reachable: bool = True

    def differs(self, other: _Shown) -> bool:
        texts = [str(problem) for problem in self.problems], [str(problem) for problem in other.problems]
        return texts[0] != texts[1] or (self.detail, self.reachable) != (other.detail, other.reachable)


class KubernetesSource:
    """A Source. `api` stays open for others when it ends. `secrets_namespace`: policies may name its Secrets besides
    those of their own. `state_dir`: where the last known objects are kept; None: nowhere."""

    def __init__(
        self,
        api: Connection,
        options: Options = DEFAULT,
        *,
        secrets_namespace: str = "",
        state_dir: Path | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._api = api
        self._options = options
        self._timing = timing or Timing()
        self._news = asyncio.Event()
        self._unsaved = asyncio.Event()
        self._discovery = Discovery(api, self._news.set, self._timing)
        self._kinds = {kind.name: self._followed(kind) for kind in KINDS}
        self._named = NamedSecrets(secrets_namespace)
        self._secrets: dict[SecretName, _Followed] = {}
        self._left: list[Delete] = []
        self._announced: set[type[Resource]] = set()
        self._saved = SavedObjects(state_dir) if state_dir is not None else None
        self._cannot_save: SourceError | None = None
        self._shown = _Shown()

    def _followed(self, kind: Kind) -> _Followed:
        return _Followed(kind, Collection(kind, self._news.set, self._options))

    def health(self) -> SourceHealth:
        """`detail`: resource → version that was read last, or why it cannot be read at present."""
        shown = self._shown
        return SourceHealth(
            "kubernetes", self._api.location, shown.detail, shown.problems, self._reachable, self._contact
        )

    async def watch(self) -> AsyncGenerator[list[Change], None]:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._discovery.run(), name="discovery"),
                *(tasks.create_task(one.run(), name=str(one.place.resource)) for one in self._discovery.reflectors),
            ]
            if self._saved is not None:
                running.append(tasks.create_task(self._save(self._saved), name="save objects"))
            try:
                deadline = time.monotonic() + self._timing.grace
                while True:
                    await self._next(deadline)
                    changes = await self._take(tasks, late=time.monotonic() >= deadline)
                    now = self._now()
                    if changes or now.differs(self._shown):
                        self._tell(now)
                        self._shown = now
                        yield changes
            except GeneratorExit:
                return
            finally:
                for task in [*running, *(one.task for one in self._all if one.task)]:
                    task.cancel()

    async def _next(self, deadline: float) -> None:
        """Wait for news; at the deadline of the start also without."""
        rest = deadline - time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(rest if rest > 0 else None):
                await self._news.wait()
                await asyncio.sleep(COALESCE)
        self._news.clear()

    async def _take(self, tasks: asyncio.TaskGroup, *, late: bool) -> list[Change]:
        """The next batch. `late`: the server has had its time, what it has not told is taken from disk."""
        self._place_all(tasks)
        if late and self._saved is not None:
            await self._restore(self._saved)
        gone: list[Delete] = []
        new: list[Upsert] = []
        for one in self._kinds.values():
            self._take_from(one, gone, new)
        self._named.follow([*gone, *new])
        self._place_secrets(tasks)
        for one in self._secrets.values():
            self._take_from(one, gone, new)
        gone += self._left
        self._left = []
        return [*gone, *new, *self._newly_synced(late=late)]

    def _take_from(self, one: _Followed, gone: list[Delete], new: list[Upsert]) -> None:
        removed, changed = one.collection.take()
        gone += removed
        new += changed
        if removed or changed or one.saved_as != self._cluster(one):
            one.unsaved = True
        if one.unsaved and one.current:
            self._unsaved.set()

    def _cluster(self, one: _Followed) -> str:
        """Whose objects these are; of a kind that is missing, whose definitions."""
        return (one.reflector or self._discovery.reflectors[0]).state.cluster

    def _place_all(self, tasks: asyncio.TaskGroup) -> None:
        """Read each kind from where the cluster has it now."""
        for one in self._kinds.values():
            kind = one.kind
            if kind.built_in:
                self._read_from(tasks, one, Place(kind.versions[0], kind.plural))
            elif kind.name in self._discovery.places:
                place = self._discovery.places[kind.name]
                one.absent = place is None
                if place is not None:
                    self._read_from(tasks, one, place)
                else:
                    self._stop(one)
                    one.collection.keep_only(set())

    def _read_from(self, tasks: asyncio.TaskGroup, one: _Followed, place: Place) -> None:
        if one.reflector is not None and one.reflector.place == place:
            return
        self._stop(one)
        shape = ProbedPod if one.kind.resource is Pod and self._options.probes_only else one.kind.shape
        trimmer = Trimmer(shape, one.kind.api, place.version)
        one.reflector = Reflector(self._api, place, one.collection, trimmer, self._news.set, timing=self._timing)
        one.task = tasks.create_task(one.reflector.run(), name=place.resource)

    def _stop(self, one: _Followed) -> None:
        if one.task is not None:
            one.task.cancel()
        one.task = one.reflector = None

    def _place_secrets(self, tasks: asyncio.TaskGroup) -> None:
        wanted = self._named.wanted[:MOST]
        for name in self._secrets.keys() - wanted:
            one = self._secrets.pop(name)
            self._stop(one)
            one.collection.take()
            self._left += map(Delete, one.collection.active)
        for name in wanted:
            if name not in self._secrets:
                one = self._secrets[name] = self._followed(SECRET)
                self._read_from(tasks, one, Place("v1", SECRET.plural, name.namespace, name.name))

    def _newly_synced(self, *, late: bool) -> Iterator[Synced]:
        for kind in resources.KINDS:
            if kind not in self._announced and (
                self._secrets_known(late) if kind is resources.Secret else self._known(kind)
            ):
                self._announced.add(kind)
                yield Synced(kind)

    def _known(self, resource: type[Resource]) -> bool:
        return all(one.current or one.restored for one in self._kinds.values() if one.kind.resource is resource)

    def _secrets_known(self, late: bool) -> bool:
        """Which ones there are is known only with the policies."""
        return self._known(PolicyDocument) and all(
            one.current or (one.error is not None and (late or not one.error.lost)) for one in self._secrets.values()
        )

    async def _restore(self, saved: SavedObjects) -> None:
        """Take what was saved of each kind that the server does not tell."""
        ages = []
        for one in self._kinds.values():
            if not (one.current or one.sought) and (one.error is not None or self._undiscovered(one)):
                one.sought = True
                found = await asyncio.to_thread(saved.load, one.kind, self._api.cluster, self._options)
                if found is not None and not one.current:
                    one.collection.restore(found.resources)
                    one.restored, one.contact = True, time.monotonic() - found.age
                    ages.append(found.age)
        if ages:
            log.warning("%d kinds are as saved %.0f s ago, until the API server tells", len(ages), max(ages))

    def _undiscovered(self, one: _Followed) -> bool:
        failing = (
            any(reflector.state.error for reflector in self._discovery.reflectors)
            or self._discovery.problems
            or self._discovery.lost
        )
        return bool(not one.kind.built_in and one.reflector is None and failing)

    @property
    def _all(self) -> Iterator[_Followed]:
        yield from self._kinds.values()
        yield from self._secrets.values()

    @property
    def _reflectors(self) -> Iterator[Reflector]:
        yield from self._discovery.reflectors
        yield from (one.reflector for one in self._all if one.reflector)

    @property
    def _lost(self) -> list[Reflector]:
        return [one for one in self._reflectors if one.state.error is not None and one.state.error.lost]

    @property
    def _reachable(self) -> bool:
        return not self._lost and self._discovery.lost is None

    @property
    def _contact(self) -> float:
        """When everything was known: of what is lost the oldest word counts, else the newest."""
        lost = self._lost
        if not lost:
            return max((one.state.contact for one in self._reflectors), default=NEVER)
        restored = [one.contact for one in self._kinds.values() if one.restored and not one.current]
        return min([*(one.state.contact for one in lost if one.state.contact != NEVER), *restored], default=NEVER)

    def _now(self) -> _Shown:
        detail: dict[str, int | str] = {}
        problems = [problem for one in self._all for problem in one.collection.problems]
        problems += self._discovery.problems
        problems += [self._cannot_save] if self._cannot_save else []
        for one in self._reflectors:
            error, name = one.state.error, _name(one.place)
            detail[name] = str(error) if error is not None else one.state.version
            if error is not None and not (error.lost and error.status != 401):
                problems.append(_problem(one, error))
        if len(self._named.wanted) > MOST:
            problems.append(SourceError(f"policies name more than {MOST} Secrets: the last ones count as missing"))
        problems.sort(key=lambda problem: (problem.file, problem.field, problem.message))
        return _Shown(tuple(problems), detail, self._reachable)

    def _tell(self, now: _Shown) -> None:
        if self._shown.reachable and not now.reachable:
            log.warning(
                "the API server cannot be reached: %s; the last known state stays in force", self._lost[0].state.error
            )
        elif now.reachable and not self._shown.reachable:
            log.info("the API server %s can be reached again", self._api.location)

    def _tried_to_save(self, error: SourceError | None) -> None:
        if str(error) != str(self._cannot_save):
            self._cannot_save = error
            self._news.set()

    async def _save(self, saved: SavedObjects) -> None:
        """Save what has changed, for as long as the source runs, and once more when it ends."""
        try:
            while True:
                await self._unsaved.wait()
                await asyncio.sleep(SAVE_PAUSE[0])
                self._unsaved.clear()
                for one in self._kinds.values():
                    pause = max(SAVE_PAUSE[0], len(one.collection.active) / SAVE_PAUSE[1])
                    if one.unsaved and one.current and time.monotonic() - one.saved >= pause:
                        one.unsaved, one.saved, one.saved_as = False, time.monotonic(), self._cluster(one)
                        objects = list(one.collection.active.values())
                        self._tried_to_save(await asyncio.to_thread(_store, saved, one.kind, one.saved_as, objects))
                if any(one.unsaved and one.current for one in self._kinds.values()):
                    self._unsaved.set()
        finally:
            for one in self._kinds.values():
                if one.unsaved and one.current:
                    _store(saved, one.kind, self._cluster(one), list(one.collection.active.values()))


def _store(saved: SavedObjects, kind: Kind, cluster: str, objects: list[Resource]) -> SourceError | None:
    """Why the objects could not be saved."""
    try:
        saved.store(kind, cluster, objects)
    except OSError as error:
        return SourceError(f"the last known objects cannot be saved: {error}", field="state-dir")
    return None


def _name(place: Place) -> str:
    return f"{place.resource} {place.namespace}/{place.name}" if place.name else place.resource


def _problem(one: Reflector, error: ApiError) -> SourceError:
    what = {
        401: "the API server does not accept the credentials",
        403: "the agent may not read them: grant it list and watch of them by RBAC",
    }.get(error.status, "cannot be read")
    return SourceError(f"{what} ({error})", file=_name(one.place))
