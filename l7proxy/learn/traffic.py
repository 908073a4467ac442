"""Counts observations by what a policy can say: subject, direction, peer, port, and the requests there.

What was refused is counted apart, and becomes a comment. HTTP rules are learned where requests were inspected: for the
ingress of the destination, and for the egress of the source if its egress was inspected, or the destination is no pod.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from l7proxy.learn import paths
from l7proxy.learn.labels import Group, Pairs, group_of, own_labels
from l7proxy.learn.observation import WORLDS, End, HttpRequest, Observation, Outcome
from l7proxy.model.net import single
from l7proxy.model.verdict import Direction
from l7proxy.policy.decision import port_name

ENTITIES: Final = ("host", "kube-apiserver", "remote-node", "health", "init", "ingress", "unmanaged", "world")
"""Entities of Cilium for reserved identities, the first that an end has counts; toward pods. See `_entity`."""
MAX_COUNTED: Final = 1000
"""Different callers, and different denials, that are kept for comments; the rest are only counted."""
OTHERS: Final = "others"
METHOD: Final = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
HOST: Final = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.-_:[]")


@dataclass(frozen=True, slots=True)
class Options:
    """What is learned.

    `namespaces`: of subjects; empty is all. `since_ns`: older flows do not count. `min_count`: what was seen less often
    is only mentioned. `cidr`: addresses outside as prefixes, not as `world`. `hosts`: HTTP rules name the host.
    `any_query`: allow any query. `max_values`: see `paths.PathTree`; `max_paths`: HTTP rules per method, peer and port.
    """

    namespaces: frozenset[str] = frozenset()
    since_ns: int = 0
    min_count: int = 1
    include_dropped: bool = False
    cidr: bool = False
    hosts: bool = False
    any_query: bool = True
    max_values: int = 10
    max_paths: int = 100


NO_GROUP: Final = Group("", ())


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """The other end as a rule names it: pods of a group (of another cluster, if that is set), an entity or a prefix."""

    entity: str = ""
    cidr: str = ""
    group: Group = NO_GROUP
    cluster: str = ""

    def __str__(self) -> str:
        return self.entity or self.cidr or str(self.group)


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """One cell of a policy."""

    subject: Group
    direction: Direction
    peer: Peer
    protocol: int
    port: int


@dataclass
class Cell:
    """What was seen at one key: connections, whether their requests were inspected, and the requests.

    `plain`: connections that were not inspected here. `requests`: (method, host) → paths; the host is "" unless
    hosts are learned. `unlearned`: requests by the reason why they cannot be.
    """

    plain: int = 0
    inspected: int = 0
    requests: dict[tuple[str, str], paths.PathTree] = field(default_factory=dict)
    unlearned: Counter[str] = field(default_factory=Counter)
    callers: Counter[str] = field(default_factory=Counter)
    elsewhere: int = 0
    """Requests that are judged by the other direction."""
    names: set[str] = field(default_factory=set)
    """DNS names that were asked for."""

    @property
    def count(self) -> int:
        return self.plain + self.inspected + self.elsewhere


Allows = Callable[[Key, HttpRequest], bool]
"""Whether an earlier policy allows this request already."""


@dataclass
class Subject:
    """What is known of the pods of a group: `here` are the directions in which a node of theirs has recorded flows."""

    names: Counter[str] = field(default_factory=Counter)
    kinds: set[Pairs] = field(default_factory=set)
    here: set[Direction] = field(default_factory=set)
    denied: dict[Direction, Counter[str]] = field(
        default_factory=lambda: {Direction.INGRESS: Counter(), Direction.EGRESS: Counter()}
    )


@dataclass
class Traffic:
    """All observations, counted.

    `allows`: what an earlier policy allows is not learned again. `left_out`: observations by the reason why nothing was
    learned from them.
    """

    options: Options = Options()
    cells: dict[Key, Cell] = field(default_factory=dict)
    subjects: dict[Group, Subject] = field(default_factory=dict)
    refused: dict[Key, dict[tuple[str, str], paths.Refused]] = field(default_factory=dict)
    """Requests that were refused, by method and host as in `Cell.requests`."""
    allows: Allows = lambda key, request: False
    left_out: Counter[str] = field(default_factory=Counter)
    flows: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def add_all(self, seen: Iterable[Observation | str]) -> None:
        for one in seen:
            self.flows += 1
            if isinstance(one, str):
                self.left_out[one] += 1
            elif one.time_ns < self.options.since_ns:
                self.left_out["before --since"] += 1
            else:
                self.add(one)

    def add(self, seen: Observation) -> None:
        self.first_ns = min(self.first_ns or seen.time_ns, seen.time_ns)
        self.last_ns = max(self.last_ns, seen.time_ns)
        for direction, end, peer_end in _judged(seen):
            self._learn(seen, direction, end, peer_end)

    def _learn(self, seen: Observation, direction: Direction, end: End, peer_end: End) -> None:
        if end.reserved:
            return
        group = group_of(end)
        if group is None:
            why = "has no labels to select it by" if end.is_known else "is not known: the flow has no labels of it"
            self.left_out[f"{direction.word} of {end}: the pod {why}"] += 1
            return
        if self.options.namespaces and group.namespace not in self.options.namespaces:
            return
        subject = self._subject(group, end)
        if end.here is not False:
            subject.here.add(direction)
        peer = self.peer(peer_end, end, direction)
        if seen.outcome is Outcome.DENIED and not self.options.include_dropped:
            _count(subject.denied[direction], _denial(seen, peer_end))
            if seen.request is not None and peer is not None:
                self._refuse(Key(group, direction, peer, seen.protocol, seen.port), seen.request, seen.reason)
            return
        if peer is None:
            self.left_out[f"{direction.word} of {group}: no rule can name the peer {peer_end}"] += 1
            return
        key = Key(group, direction, peer, seen.protocol, seen.port)
        cell = self.cells.setdefault(key, Cell())
        _count(cell.callers, str(peer_end))
        self._record(key, cell, seen)

    def _subject(self, group: Group, end: End) -> Subject:
        subject = self.subjects.setdefault(group, Subject())
        _count(subject.names, str(end))
        if len(subject.kinds) < MAX_COUNTED:
            subject.kinds.add(tuple(sorted(own_labels(end).items())))
        return subject

    def _record(self, key: Key, cell: Cell, seen: Observation) -> None:
        if seen.dns_query:
            cell.plain += 1
            if len(cell.names) < MAX_COUNTED:
                cell.names.add(seen.dns_query)
            return
        egress = key.direction is Direction.EGRESS
        here = not egress or seen.direction is Direction.EGRESS or not key.peer.group.namespace
        if not here and (seen.request is not None or seen.outcome is Outcome.REDIRECTED):
            cell.elsewhere += 1
        elif seen.request is not None:
            cell.inspected += 1
            self._request(key, cell, seen.request)
        elif seen.outcome is Outcome.REDIRECTED:
            cell.inspected += 1
        else:
            cell.plain += 1

    def _request(self, key: Key, cell: Cell, request: HttpRequest) -> None:
        try:
            which, path = self._readable(request)
        except ValueError as error:
            cell.unlearned[str(error)] += 1
            return
        if self.allows(key, replace(request, path=path)):
            return
        if which not in cell.requests:
            if len(cell.requests) >= MAX_COUNTED:
                cell.unlearned["too many different methods or hosts"] += 1
                return
            cell.requests[which] = paths.PathTree(self.options.max_values, any_query=self.options.any_query)
        cell.requests[which].add(path)

    def _refuse(self, key: Key, request: HttpRequest, reason: str) -> None:
        with suppress(ValueError):
            which, path = self._readable(request)
            found = self.refused.setdefault(key, {})
            if which in found or len(found) < MAX_COUNTED:
                found.setdefault(which, paths.Refused()).add(path, reason)

    def _readable(self, request: HttpRequest) -> tuple[tuple[str, str], str]:
        """((method, host), path). ValueError says why this request cannot be learned."""
        if request.path is None:
            raise ValueError("CONNECT, or a URL that is cut off or has no path")
        if not request.method or not METHOD.issuperset(request.method):
            raise ValueError("not a method")
        if self.options.hosts and not (request.host and HOST.issuperset(request.host)):
            raise ValueError("no host that a rule may name")
        return (request.method, request.host if self.options.hosts else ""), paths.readable(request.path)

    def peer(self, end: End, subject: End, direction: Direction) -> Peer | None:
        """How a rule names this end; None if it cannot."""
        if end.reserved:
            return self._entity(end, direction)
        group = group_of(end)
        if group is None:
            return None
        cluster = end.cluster if end.cluster != subject.cluster else ""
        return Peer(group=group, cluster=cluster)

    def _entity(self, end: End, direction: Direction) -> Peer | None:
        """From an API server on this node comes what the node sends; toward it, the narrower entity is chosen."""
        names = {"world" if name in WORLDS else name for name in end.reserved}
        if direction is Direction.EGRESS and "kube-apiserver" in names:
            return Peer(entity="kube-apiserver")
        entity = next((name for name in ENTITIES if name in names), None)
        if entity == "world" and self.options.cidr:
            return Peer(cidr=str(single(end.address))) if end.address else None
        return Peer(entity=entity) if entity else None


def _judged(seen: Observation) -> Iterator[tuple[Direction, End, End]]:
    """(direction, its pod, the peer) for each direction that the verdict is of.

    What was let in must have been let out before. What was let out may have been refused later, where it came in.
    """
    ingress = (Direction.INGRESS, seen.destination, seen.source)
    egress = (Direction.EGRESS, seen.source, seen.destination)
    if seen.outcome is Outcome.DENIED:
        yield egress if seen.direction is Direction.EGRESS else ingress
        return
    yield egress
    if seen.direction is not Direction.EGRESS or (seen.both and seen.destination.here):
        yield ingress


def _count(counter: Counter[str], name: str) -> None:
    counter[name if name in counter or len(counter) < MAX_COUNTED else OTHERS] += 1


def _denial(seen: Observation, peer: End) -> str:
    request = f" {seen.request.method} {seen.request.path}" if seen.request is not None else ""
    why = f" ({seen.reason})" if seen.reason else ""
    return f"{'to' if seen.direction is Direction.EGRESS else 'from'} {peer}, {where(seen)}{request}{why}"


def where(seen: Observation) -> str:
    return port_name(seen.protocol, seen.port)
