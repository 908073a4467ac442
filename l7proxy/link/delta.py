"""Encodes policy snapshots for workers as deltas, packed, so that a shared policy is sent once.

Pure. Law: decoding the delta from p to q after p gives q; p may be EMPTY. ClusterState and the policy compiler return
the same object while nothing changes, and identities are a VersionedMap, so the cost of a delta is that of the changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from l7proxy.errors import LinkError
from l7proxy.link.messages import PackedEndpoint, PolicySnapshot, SnapshotDelta
from l7proxy.model.versioned import VersionedMap, changes
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, LocalEndpoint

UNGOVERNED = -1
"""The index that stands for no policy."""
EMPTY: Final = PolicySnapshot(0, (), {})
"""What a worker has before its first snapshot."""


def delta(before: PolicySnapshot, after: PolicySnapshot) -> SnapshotDelta:
    """What turns snapshot `before` into `after`."""
    known = {one.id: one for one in before.endpoints}
    changed = [one for one in after.endpoints if not _same(known.pop(one.id, None), one)]
    policies, endpoints = _pack(changed)
    was, now = before.identities, after.identities
    moved = {prefix for prefix in changes(was, now) if was.get(prefix) != now.get(prefix)}
    come = {prefix: now[prefix] for prefix in moved if prefix in now}
    return SnapshotDelta(
        before.revision,
        msgspec.structs.replace(after, endpoints=(), identities={}),
        policies,
        endpoints,
        tuple(sorted(known)),
        come,
        tuple(sorted(moved - come.keys())),
    )


class SnapshotDecoder:
    """A worker's decoder: keeps the last snapshot, to which deltas apply."""

    def __init__(self) -> None:
        self._last = EMPTY
        self._identities: VersionedMap[str, int] = VersionedMap()

    def open(self, message: SnapshotDelta) -> PolicySnapshot:
        """LinkError when the message is inconsistent, or a delta to another snapshot than the last one or EMPTY."""
        last = self._last if message.base else EMPTY
        if last.revision != message.base:
            raise LinkError(f"a delta to policy revision {message.base}, but the current one is {last.revision}")
        gone = frozenset(message.gone)
        endpoints = {one.id: one for one in last.endpoints if one.id not in gone}
        endpoints |= {one.id: one for one in _unpack(message.endpoints, message.policies)}
        if not message.base:
            self._identities = VersionedMap()
        come, lost = message.identities, dict.fromkeys(message.identities_gone)
        self._identities = self._identities.updated({**come, **lost}, {**come, **lost}.get)
        ordered = tuple(endpoints[number] for number in sorted(endpoints))
        self._last = msgspec.structs.replace(message.head, endpoints=ordered, identities=self._identities)
        return self._last


def _same(known: LocalEndpoint | None, other: LocalEndpoint) -> bool:
    if known is None or (known.name, known.addresses) != (other.name, other.addresses):
        return False
    return known.policy is other.policy or known.policy == other.policy


def _pack(endpoints: Iterable[LocalEndpoint]) -> tuple[tuple[DirectionPolicy, ...], tuple[PackedEndpoint, ...]]:
    """Policies are compared by `id`: the compiler gives all replicas the same object."""
    policies: list[DirectionPolicy] = []
    places: dict[int, int] = {}

    def place(policy: DirectionPolicy | None) -> int:
        if policy is None:
            return UNGOVERNED
        if id(policy) not in places:
            places[id(policy)] = len(policies)
            policies.append(policy)
        return places[id(policy)]

    packed = tuple(
        PackedEndpoint(one.id, one.name, one.addresses, place(one.policy.ingress), place(one.policy.egress))
        for one in endpoints
    )
    return tuple(policies), packed


def _unpack(packed: Iterable[PackedEndpoint], policies: Sequence[DirectionPolicy]) -> list[LocalEndpoint]:
    def at(place: int) -> DirectionPolicy | None:
        if not UNGOVERNED <= place < len(policies):
            raise LinkError(f"an endpoint refers to policy {place} of {len(policies)}")
        return None if place == UNGOVERNED else policies[place]

    return [
        LocalEndpoint(one.id, one.name, one.addresses, EndpointPolicy(one.id, at(one.ingress), at(one.egress)))
        for one in packed
    ]
