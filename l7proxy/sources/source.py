"""What a source of resources must do: the contract, in `Source`. `tests/contract/test_source.py` checks each law."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from l7proxy.errors import SourceError
from l7proxy.model.resources import KINDS, Change, Delete, Resource, ResourceKey, Synced, Upsert

SYNCED: Final[tuple[Synced, ...]] = tuple(map(Synced, KINDS))
"""The events of a source that has read all kinds."""
NEVER: Final = -math.inf


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """What `status` shows of a source.

    `kind` and `location`: which source it is (`files`, and their directory). `detail`: part → version that was read,
    e.g. file → mtime in nanoseconds. `problems`: objects that cannot be used, each with the reason. `reachable`:
    whether the last attempt to reach the source succeeded. `contact`: time.monotonic() of the last success.
    """

    kind: str = ""
    location: str = ""
    detail: Mapping[str, int | str] = field(default_factory=dict)
    problems: tuple[SourceError, ...] = ()
    reachable: bool = True
    contact: float = NEVER


class Source(Protocol):
    """Yields the resources of a cluster, and then every change.

    Laws:
      - The last event of a key counts: Upsert, the object exists with this content; Delete, it does not. Within a batch
        a key has one event, and removals come first.
      - Synced comes once for each of KINDS, after all objects of this kind that exist at the start.
      - An unchanged object causes no event. Delete comes only for a key that exists.
      - An object that was deleted while the source was unreachable is deleted when it is reachable again. While it is
        unreachable, nothing is deleted.
      - An object that cannot be decoded keeps its last good version, and is one of health's problems until it is
        mended or deleted. A policy that never had a good version is a PolicyDocument with an error in `parsed`.
      - An object of a kind that is not used causes neither event nor problem.
      - A change of `detail`, `problems` or `reachable` causes a batch, which may be empty. `detail` and `problems` are
        those of the batch that was yielded last; `reachable` and `contact` are current.
      - No event and no problem shows the value of a Secret.
    """

    def watch(self) -> AsyncGenerator[list[Change], None]:
        """Batches of changes, without end, until it is closed. May be called once."""
        ...

    def health(self) -> SourceHealth: ...


def differences(before: Mapping[ResourceKey, Resource], after: Mapping[ResourceKey, Resource]) -> list[Change]:
    """The changes from `before` to `after`: removals first, each part sorted by key."""
    others = [key for key, resource in after.items() if before.get(key) is not resource]
    kept = len(after) - sum(key not in before for key in others)
    gone = [key for key in before if key not in after] if kept < len(before) else []
    changed = [key for key in others if before.get(key) != after[key]]
    return [*map(Delete, sorted(gone)), *(Upsert(after[key]) for key in sorted(changed))]
