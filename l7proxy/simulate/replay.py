"""`policy replay`: which recorded flows would have another verdict under other policies, and why.

Equal flows are judged once and counted. A connection that was not inspected, and would be, has requests that are not
recorded: it is not judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from l7proxy.learn.labels import own_labels
from l7proxy.learn.observation import End, Observation, Outcome
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.policy.decision import port_name
from l7proxy.simulate.recorded import Judge, Judgement

NOT_INSPECTED: Final = "HTTP rules would apply, and the requests of this connection are not recorded"
NO_POLICY: Final = "no policy applies"
DENIED: Final = "denied"
ALLOWED: Final = "allowed"
AUDITED: Final = "audited"
SHOWN: Final = 160
"""Characters of a request that are shown."""


Connection = tuple[str, int, str, int]
"""Addresses and ports."""


@dataclass(frozen=True, slots=True)
class Change:
    """Flows of one kind whose verdict would change. `would`: denied, allowed, or audited: it passes, reported."""

    would: str
    source: str
    destination: str
    port: str
    request: str
    was: str
    direction: str
    policy: RuleRef | None
    reason: str
    count: int

    def to_json(self) -> dict[str, Any]:
        ref = self.policy
        return {
            "would": self.would,
            "source": self.source,
            "destination": self.destination,
            "port": self.port,
            "request": self.request or None,
            "was": self.was,
            "direction": self.direction,
            "policy": ref and {"kind": ref.kind, "namespace": ref.namespace, "name": ref.name, "rule": ref.rule},
            "reason": self.reason,
            "count": self.count,
        }


@dataclass(frozen=True, slots=True)
class Unjudged:
    """Flows of one kind that cannot be judged, and why."""

    source: str
    destination: str
    port: str
    request: str
    why: str
    count: int

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) or None for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Result:
    """`left_out`: flows that are no verdict of a policy, by reason."""

    flows: int
    unchanged: int
    changes: tuple[Change, ...]
    unjudged: tuple[Unjudged, ...]
    left_out: dict[str, int]

    @property
    def changed(self) -> int:
        return sum(one.count for one in self.changes)

    def to_json(self) -> dict[str, Any]:
        return {
            "flows": self.flows,
            "unchanged": self.unchanged,
            "changed": self.changed,
            "unjudged": sum(one.count for one in self.unjudged),
            "left_out": self.left_out,
            "changes": [one.to_json() for one in self.changes],
            "not_judged": [one.to_json() for one in self.unjudged],
        }


@dataclass
class Flows:
    """Observations, counted. What tells two flows of one kind apart (time, ports of the client) is dropped."""

    flows: int = 0
    kinds: Counter[Observation] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    passed: set[Connection] = field(default_factory=set)
    """Connections of which a request passed."""
    refused: set[Connection] = field(default_factory=set)
    connections: dict[Observation, set[Connection]] = field(default_factory=dict)
    has_queries: bool = False

    def add_all(self, seen: Iterable[Observation | str]) -> None:
        for one in seen:
            self.flows += 1
            if isinstance(one, str):
                self.left_out[one] += 1
            else:
                self._add(one)

    def _add(self, seen: Observation) -> None:
        kind = kind_of(seen)
        self.kinds[kind] += 1
        if seen.request is not None:
            (self.refused if seen.outcome is Outcome.DENIED else self.passed).add(seen.connection)
            self.has_queries = self.has_queries or seen.request.has_query
        elif seen.outcome is not Outcome.DENIED:
            self.connections.setdefault(kind, set()).add(seen.connection)

    def were_inspected(self, kind: Observation) -> bool:
        """Whether requests of all connections of this kind are recorded."""
        return self.connections.get(kind, set()) <= self.passed | self.refused

    def were_of_no_use(self, kind: Observation) -> bool:
        """Whether every request on all connections of this kind was refused, so that refusing them changes nothing."""
        mine = self.connections.get(kind, set())
        return kind.outcome is Outcome.REDIRECTED and mine <= self.refused and not mine & self.passed


def kind_of(seen: Observation) -> Observation:
    """The observation without what tells flows of one kind apart."""
    return replace(seen, connection=("", 0, "", 0), time_ns=0, reason="", dns_query="")


def replay(flows: Flows, judge: Judge) -> Result:
    """Judge all flows. Deterministic: changes of most flows first."""
    judge.enrol(flows.kinds)
    unchanged = 0
    changes: Counter[Change] = Counter()
    unjudged: Counter[Unjudged] = Counter()
    let_in = {_without_direction(one) for one in flows.kinds if one.direction is not Direction.EGRESS}
    for kind, count in flows.kinds.items():
        found = judge.judge(kind)
        if not found.unjudged and uninspected(kind, found) and not flows.were_inspected(kind):
            found = Judgement(unjudged=NOT_INSPECTED)
        if found.unjudged and not (kind.direction is Direction.EGRESS and _without_direction(kind) in let_in):
            unjudged[Unjudged(*_words(kind), found.unjudged, 0)] += count
        elif (change := change_of(kind, found)) is not None and not flows.were_of_no_use(kind):
            changes[change] += count
        else:
            unchanged += count
    return Result(
        flows.flows,
        unchanged,
        tuple(sorted((replace(one, count=n) for one, n in changes.items()), key=_order)),
        tuple(sorted((replace(one, count=n) for one, n in unjudged.items()), key=_order)),
        dict(sorted(flows.left_out.items())),
    )


def uninspected(seen: Observation, found: Judgement) -> bool:
    """Whether each request of this connection would get a verdict, and none of them did."""
    plain = seen.request is None and seen.outcome in (Outcome.ALLOWED, Outcome.AUDITED)
    return plain and found.policy_verdict is not None and found.policy_verdict.verdict is Verdict.REDIRECTED


def change_of(seen: Observation, found: Judgement) -> Change | None:
    """How the verdict would change; None if it would not. To pass by audit only is a change from having passed."""
    policy_verdict = found.policy_verdict
    if policy_verdict is None:
        return None
    would = _would(policy_verdict.verdict)
    was = DENIED if seen.outcome is Outcome.DENIED else AUDITED if seen.outcome is Outcome.AUDITED else ALLOWED
    if would == was or (was == AUDITED and would == ALLOWED):
        return None
    ingress = policy_verdict.direction is Direction.INGRESS
    allowed_by = [ref for ref in (policy_verdict.egress, policy_verdict.ingress) if ref is not None]
    return Change(
        would,
        *_words(seen),
        seen.outcome.value,
        policy_verdict.direction.word,
        policy_verdict.ingress if ingress else policy_verdict.egress,
        policy_verdict.reason or (f"allowed by {' and '.join(map(str, allowed_by))}" if allowed_by else NO_POLICY),
        0,
    )


def _would(verdict: Verdict) -> str:
    return DENIED if verdict is Verdict.DROPPED else AUDITED if verdict is Verdict.AUDIT else ALLOWED


def _words(seen: Observation) -> tuple[str, str, str, str]:
    request = f"{seen.request.method} {seen.request.path or '(not recorded)'}" if seen.request is not None else ""
    shown = request if len(request) <= SHOWN else f"{request[:SHOWN]}…"
    return str(seen.source), str(seen.destination), port_name(seen.protocol, seen.port), shown


def _without_direction(seen: Observation) -> tuple[Any, ...]:
    return _who(seen.source), _who(seen.destination), seen.protocol, seen.port, seen.request


def _who(end: End) -> Any:
    return end.reserved or (end.namespace, tuple(sorted(own_labels(end).items())))


def _order(one: Change | Unjudged) -> Any:
    return -one.count, one.source, one.destination, one.port, one.request


def pairs(changes: Iterable[Change]) -> Iterator[tuple[str, str, str, str, int]]:
    """(source, destination, port, would) with the number of flows, most first."""
    counted: Counter[tuple[str, str, str, str]] = Counter()
    for one in changes:
        counted[one.source, one.destination, one.port, one.would] += one.count
    yield from ((*pair, count) for pair, count in sorted(counted.items(), key=lambda each: (-each[1], each[0])))
