"""The objects of one kind, decoded: which are active, which cannot be decoded, what changed since the last batch. Pure.

An object is known by the name it has in the API, also when its content is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from l7proxy.errors import SourceError
from l7proxy.model.resources import Delete, Pod, Resource, ResourceKey, SourceLocation, Upsert
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.sources.decode import Decoded, Fault, decode
from l7proxy.sources.kubernetes.kinds import Kind
from l7proxy.sources.kubernetes.sharing import SharedParts
from l7proxy.sources.last_good import settle
from l7proxy.sources.objects import NOWHERE

MAX_SHOWN: Final = 100
"""Problems of one kind that are shown: a broken controller may make thousands of broken objects."""


class Sink(Protocol):
    """What a reflector fills."""

    def put(self, value: Mapping[str, Any]) -> ResourceKey: ...
    def remove(self, value: Mapping[str, Any]) -> None: ...
    def keep_only(self, known: set[ResourceKey]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Broken:
    """An object that cannot be decoded; `active` is the key of what is in force instead, if anything is."""

    error: SourceError
    active: ResourceKey | None
    placeholder: bool


class Collection:
    """A Sink that decodes. `changed` is called when there is something to `take`."""

    def __init__(self, kind: Kind, changed: Callable[[], None], options: Options = DEFAULT) -> None:
        self.kind = kind
        self.active: dict[ResourceKey, Resource] = {}
        self._broken: dict[ResourceKey, _Broken] = {}
        self._before: dict[ResourceKey, Resource | None] = {}
        """Key → what was active when the last batch was taken, of what has changed since."""
        self._changed = changed
        self._options = options
        self._share = SharedParts()

    def put(self, value: Mapping[str, Any]) -> ResourceKey:
        """The object exists with this content. Returns what it is known by, if possible as `active` has it."""
        key = self._key(value)
        found = decode(value, self._origin(key), options=self._options)
        if isinstance(found, SourceError):
            found = Fault(found, key)
        if isinstance(found, Fault):
            self._put_broken(key, value, found)
        else:
            if isinstance(found, Pod):
                found = self._share(found)
            if key in self._broken:
                self._forget_broken(key, keep=found.key)
            key = found.key
            self._set(key, found)
        return key

    def remove(self, value: Mapping[str, Any]) -> None:
        self._remove(self._key(value))

    def keep_only(self, known: set[ResourceKey]) -> None:
        """All others do not exist."""
        stand_ins = {broken.active for broken in self._broken.values()}
        for key in [*self._broken, *(key for key in self.active if key not in stand_ins)]:
            if key not in known:
                self._remove(key)

    def restore(self, resources: Iterable[Resource]) -> None:
        """Take these as what exists, for what is not known better."""
        for resource in resources:
            if resource.key not in self.active:
                self._set(resource.key, resource)

    def take(self) -> tuple[list[Delete], list[Upsert]]:
        """What changed since this was called last."""
        gone, new = [], []
        for key, before in self._before.items():
            now = self.active.get(key)
            if now is None and before is not None:
                gone.append(Delete(key))
            elif now is not None and now != before:
                new.append(Upsert(now))
        self._before = {}
        return gone, new

    @property
    def problems(self) -> list[SourceError]:
        shown = [self._broken[key].error for key in sorted(self._broken)[:MAX_SHOWN]]
        if len(self._broken) > MAX_SHOWN:
            more = len(self._broken) - MAX_SHOWN
            shown.append(SourceError(f"{more} more objects of this kind cannot be used", file=self.kind.name))
        return shown

    def _put_broken(self, key: ResourceKey, value: Mapping[str, Any], fault: Fault) -> None:
        if self.kind.resource is Pod:  # pods have no origin, to save memory: the error must still name the pod
            again = decode(value, SourceLocation(str(key)), options=self._options)
            fault = again if isinstance(again, Fault) else fault
        old = self._broken.get(key)
        good = old is None or not old.placeholder
        before = {key: self.active[key]} if good and key in self.active else {}
        kept, stand_ins = settle(Decoded(faults=(fault,)), before)
        ours, resource = next(iter((kept or stand_ins).items()), (None, None))
        if old is not None:
            self._forget_broken(key, keep=ours)
        if ours is not None and resource is not None:
            self._set(ours, resource)
        self._broken[key] = _Broken(fault.error, ours, placeholder=not kept)
        self._changed()

    def _forget_broken(self, key: ResourceKey, keep: ResourceKey | None) -> None:
        broken = self._broken.pop(key)
        if broken.active is not None and broken.active != keep:
            self._drop(broken.active)
        self._changed()

    def _remove(self, key: ResourceKey) -> None:
        if key in self._broken:
            self._forget_broken(key, keep=None)
        self._drop(key)

    def _set(self, key: ResourceKey, resource: Resource) -> None:
        old = self.active.get(key)
        if old != resource:
            self._before.setdefault(key, old)
            self.active[key] = resource
            self._changed()

    def _drop(self, key: ResourceKey) -> None:
        old = self.active.pop(key, None)
        if old is not None:
            self._before.setdefault(key, old)
            self._changed()

    def _origin(self, key: ResourceKey) -> SourceLocation:
        return NOWHERE if self.kind.resource is Pod else SourceLocation(str(key))

    def _key(self, value: Mapping[str, Any]) -> ResourceKey:
        metadata = value.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        namespace = _text(metadata.get("namespace", "default")) if self.kind.namespaced else ""
        return ResourceKey(self.kind.name, namespace, _text(metadata.get("name", "")))


class Names:
    """A Sink that keeps the names of objects, but those with the label `without`."""

    def __init__(self, changed: Callable[[], None], without: str = "") -> None:
        self.names: set[str] = set()
        self._changed = changed
        self._without = without

    def put(self, value: Mapping[str, Any]) -> ResourceKey:
        metadata = value.get("metadata") or {}
        name = str(metadata.get("name"))
        if self._without not in (metadata.get("labels") or {}):
            self.names.add(name)
        self._changed()  # also for one that is known: its state may have changed
        return ResourceKey("", "", name)

    def remove(self, value: Mapping[str, Any]) -> None:
        self.names.discard(str((value.get("metadata") or {}).get("name")))
        self._changed()

    def keep_only(self, known: set[ResourceKey]) -> None:
        self.names &= {key.name for key in known}
        self._changed()


def _text(value: object) -> str:
    return value if isinstance(value, str) else repr(value)
