"""Pictures on their way to workers: packed, so that equal policies go once, and as deltas against the last one.

Pure. Laws: opening the whole of p gives p, and opening the delta from p to q when p is known gives q. World and compile
hand out the same value as long as nothing changed, so that the price of a delta is that of what has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from l7proxy.errors import LinkError
from l7proxy.link.messages import FullSnapshot, LocalEndpoint, PackedEndpoint, PolicySnapshot, SnapshotDelta
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy

UNGOVERNED = -1
"""The place of no policy."""


def whole(picture: PolicySnapshot) -> FullSnapshot:
    policies, endpoints = _pack(picture.endpoints)
    return FullSnapshot(_head(picture), policies, endpoints, picture.identities)


def delta(before: PolicySnapshot, after: PolicySnapshot) -> SnapshotDelta:
    """What a worker that has `before` must hear to have `after`."""
    known = {one.id: one for one in before.endpoints}
    changed = [one for one in after.endpoints if not _same(known.pop(one.id, None), one)]
    policies, endpoints = _pack(changed)
    moved = {prefix for prefix, _ in before.identities.items() ^ after.identities.items()}
    come = {prefix: after.identities[prefix] for prefix in moved if prefix in after.identities}
    return SnapshotDelta(
        before.revision,
        _head(after),
        policies,
        endpoints,
        tuple(sorted(known)),
        come,
        tuple(sorted(moved - come.keys())),
    )


class SnapshotDecoder:
    """A worker's end: remembers the last picture, which deltas are about."""

    def __init__(self) -> None:
        self._last: PolicySnapshot | None = None

    def open(self, message: FullSnapshot | SnapshotDelta) -> PolicySnapshot:
        """LinkError when it does not fit to what came before, or in itself."""
        if isinstance(message, FullSnapshot):
            endpoints = _unpack(message.endpoints, message.policies)
            picture = _filled(message.head, endpoints, message.identities)
        else:
            picture = self._follow(message)
        self._last = picture
        return picture

    def _follow(self, message: SnapshotDelta) -> PolicySnapshot:
        last = self._last
        if last is None or last.revision != message.base:
            known = "none" if last is None else str(last.revision)
            raise LinkError(f"a delta to policy revision {message.base}, but the current one is {known}")
        gone = frozenset(message.gone)
        endpoints = {one.id: one for one in last.endpoints if one.id not in gone}
        endpoints |= {one.id: one for one in _unpack(message.endpoints, message.policies)}
        identities = last.identities | message.identities
        for prefix in message.identities_gone:
            identities.pop(prefix, None)
        return _filled(message.head, [endpoints[number] for number in sorted(endpoints)], identities)


def _head(picture: PolicySnapshot) -> PolicySnapshot:
    """All but what grows with the cluster."""
    return msgspec.structs.replace(picture, endpoints=(), identities={})


def _filled(head: PolicySnapshot, endpoints: Iterable[LocalEndpoint], identities: dict[str, int]) -> PolicySnapshot:
    return msgspec.structs.replace(head, endpoints=tuple(endpoints), identities=identities)


def _same(known: LocalEndpoint | None, other: LocalEndpoint) -> bool:
    if known is None or (known.name, known.addresses) != (other.name, other.addresses):
        return False
    return known.policy is other.policy or known.policy == other.policy


def _pack(endpoints: Iterable[LocalEndpoint]) -> tuple[tuple[DirectionPolicy, ...], tuple[PackedEndpoint, ...]]:
    """Told apart by identity: replicas have the very same value from compile."""
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
