"""Compiles rules × endpoints × identities into one EndpointPolicy per endpoint. Pure, and independent of input order.

Peers become identity numbers, port names become numbers, entities and CIDRs are ordinary selectors (Cilium semantics),
and each rule goes to the tier and stage of its level. A rule whose peers or ports resolve to nothing gives no entry,
but still puts its direction into default deny.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from l7proxy.model import expression
from l7proxy.model.endpoint import Endpoint, Probe
from l7proxy.model.identity import HOST, Identity, NamedPort
from l7proxy.model.labels import EVERYTHING, RESERVED, LabelSet, Operator, Requirement, Selector, Selects
from l7proxy.model.net import Network
from l7proxy.model.ref import BUILT_IN, RuleRef
from l7proxy.model.verdict import Action, Direction, Protocol
from l7proxy.policy.l7 import enforceable
from l7proxy.policy.resolver import Resolver, numbers
from l7proxy.policy.rules import CidrPeer, HttpRule, HttpRules, PortMatch, Reach, Rule, SelectorPeer, leaves
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry, Stage, TierPolicy
from l7proxy.policy.tiers import GUARD, Level, Tier

REMEMBERED: Final = 1 << 14
"""Cached sort keys of references: every endpoint that a rule selects needs the same ones."""
ALLOW_LOCALHOST: Final = RuleRef(BUILT_IN, "", "allow-localhost")
"""Ingress from this node itself: kubelet's probes. Any explicit deny overrides it."""
NODE_PROBES: Final = RuleRef(BUILT_IN, "", "node-probes")
"""The same where the node may reach only what its kubelet probes (setting `node-access`)."""
_LOCALHOST: Final = Rule(
    ALLOW_LOCALHOST,
    EVERYTHING,
    Direction.INGRESS,
    peers=(SelectorPeer(Selector((Requirement(RESERVED, "host", Operator.EXISTS),))),),
    default_deny=False,
)
"""A selector, because the node has several identities when policies name some of its addresses."""


def compile_policies(
    rules: Iterable[Rule], endpoints: Iterable[Endpoint], identities: Mapping[int, Identity]
) -> dict[int, EndpointPolicy]:
    """The policy of every endpoint, by its id, ascending."""
    return Compiler().compile(rules, endpoints, identities)


Kind = tuple[frozenset[Selects], frozenset[NamedPort], bool, tuple[Probe, ...] | None]
"""All that an endpoint's policy depends on: the subjects that select it, its named ports, audit, what its node may
reach. Endpoints that are equal in these share one result, such as replicas."""


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A result with its inputs: valid as long as the inputs are the same objects."""

    rules: list[Rule]
    resolved: list[object]
    policy: EndpointPolicy


class Compiler:
    """Incremental `compile_policies`: a change recompiles what depends on it, and an equal result is the same object.

    Caching never changes a result (a property test compares it with a new compiler).
    """

    def __init__(self) -> None:
        self._rules: Iterable[Rule] = ()
        self._subjects: dict[Selects, list[Rule]] = {}
        self._selected: dict[LabelSet, set[Selects]] = {}
        self._resolver = Resolver()
        self._compiled: dict[Kind, _Compiled] = {}
        self._policies: dict[int, tuple[EndpointPolicy, EndpointPolicy]] = {}

    def compile(
        self, rules: Iterable[Rule], endpoints: Iterable[Endpoint], identities: Mapping[int, Identity]
    ) -> dict[int, EndpointPolicy]:
        self._resolver.update(identities)
        self._group(rules)
        endpoints = sorted(endpoints, key=lambda each: each.id)
        self._selected = {labels: self._subjects_of(labels) for labels in {one.labels for one in endpoints}}
        subjects = {labels: frozenset(selected) for labels, selected in self._selected.items()}
        kinds: dict[int, Kind] = {
            one.id: (subjects[one.labels], one.named_ports, one.audit, one.node_access) for one in endpoints
        }
        examples = {kinds[one.id]: one for one in endpoints}
        self._compiled = {kind: self._compile(kind, endpoint) for kind, endpoint in examples.items()}
        self._policies = {one: self._numbered(one, self._compiled[kind].policy) for one, kind in kinds.items()}
        return {number: policy for number, (_, policy) in self._policies.items()}

    def _group(self, rules: Iterable[Rule]) -> None:
        """Group rules by subject, and update the subjects that select each label set."""
        if rules is self._rules and isinstance(rules, tuple):
            return
        self._rules = rules
        before, self._subjects = self._subjects, {}
        for rule in rules:
            self._subjects.setdefault(rule.subject, []).append(rule)
        gone, come = before.keys() - self._subjects.keys(), self._subjects.keys() - before.keys()
        for labels, selected in self._selected.items():
            selected -= gone
            selected |= {subject for subject in come if subject.matches(labels)}

    def _subjects_of(self, labels: LabelSet) -> set[Selects]:
        known = self._selected.get(labels)
        return {subject for subject in self._subjects if subject.matches(labels)} if known is None else known

    def _compile(self, kind: Kind, endpoint: Endpoint) -> _Compiled:
        rules = [rule for subject in kind[0] for rule in self._subjects[subject]]
        known = self._compiled.get(kind)
        if known is not None and _same(known.rules, rules) and _same(known.resolved, self._resolved(known.rules)):
            return known
        policy = _endpoint(endpoint, rules, self._resolver)
        if known is not None and known.policy == replace(policy, endpoint=known.policy.endpoint):
            policy = known.policy
        return _Compiled(rules, self._resolved(rules), policy)

    def _resolved(self, rules: Iterable[Rule]) -> list[object]:
        """All values that rules get from the resolver."""
        found: list[object] = [self._resolver.peers(_LOCALHOST)]
        for rule in rules:
            found.append(self._resolver.peers(rule))
            if rule.direction is Direction.EGRESS:
                found += [self._resolver.by_port(match, rule.action) for match in rule.ports or () if match.name]
        return found

    def _numbered(self, number: int, policy: EndpointPolicy) -> tuple[EndpointPolicy, EndpointPolicy]:
        known = self._policies.get(number)
        if known is not None and known[0] is policy:
            return known
        return policy, replace(policy, endpoint=number)


def _same(some: Sequence[object], others: Sequence[object]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def cidrs_of(rules: Iterable[Rule]) -> Mapping[Network, Reach]:
    """Every prefix in rules, including excepts, with its widest reach.

    Each needs its own identity for addresses outside. With a wider reach, pods (nodes) in it need distinct identities.
    """
    found: dict[Network, Reach] = {}
    for rule in rules:
        for peer in leaves(rule.peers or ()):
            if not isinstance(peer, CidrPeer):
                continue
            for network in (peer.network, *peer.excepts):
                found[network] = max(found.get(network, Reach.OUTSIDE), peer.reach, key=_WIDTH.index)
    return found


_WIDTH: Final = (Reach.OUTSIDE, Reach.NODES, Reach.ANYWHERE)


def keys_of(rules: Iterable[Rule]) -> frozenset[tuple[str, str]]:
    """(source, key) of every label that rules select on."""
    asked: set[Selects] = set()
    for rule in rules:
        asked.add(rule.subject)
        asked.update(peer.selector for peer in leaves(rule.peers or ()) if isinstance(peer, SelectorPeer))
    return frozenset(key for one in asked for key in expression.keys(one))


def _endpoint(endpoint: Endpoint, own: list[Rule], resolver: Resolver) -> EndpointPolicy:
    ingress = [rule for rule in own if rule.direction is Direction.INGRESS]
    egress = [rule for rule in own if rule.direction is Direction.EGRESS]
    return EndpointPolicy(
        endpoint.id,
        _direction(Direction.INGRESS, ingress, endpoint, resolver),
        _direction(Direction.EGRESS, egress, endpoint, resolver),
    )


def _direction(
    direction: Direction, rules: list[Rule], endpoint: Endpoint, resolver: Resolver
) -> DirectionPolicy | None:
    guards = [rule for rule in rules if _is_guard(rule)]
    policies = _tiers(direction, [rule for rule in rules if not _is_guard(rule)], endpoint, resolver)
    tiers = (*_guard(guards, policies, endpoint, resolver), *policies)
    return DirectionPolicy(tiers, governed=bool(policies)) if tiers else None


def _is_guard(rule: Rule) -> bool:
    return rule.ref.kind == BUILT_IN and rule.level == GUARD


def _guard(
    guards: list[Rule], policies: tuple[TierPolicy, ...], endpoint: Endpoint, resolver: Resolver
) -> Iterator[TierPolicy]:
    """The tier before all policies: it denies, except what a policy entry allows for exactly this port or protocol."""
    refusing = _stage(guards, endpoint, resolver)
    if not refusing:
        return
    refused = {_cell(entry) for entry in refusing}
    exempt = {
        Entry(Action.PASS, entry.ref, entry.peers, entry.protocol, entry.first, entry.last)
        for tier in policies
        for stage in tier.stages
        for entry in stage
        if entry.action in (Action.ALLOW, Action.REDIRECT) and _cell(entry) in refused
    }
    stages = (tuple(sorted(exempt, key=_entry_key)), refusing)
    yield TierPolicy(GUARD.tier.name, tuple(stage for stage in stages if stage))


def _cell(entry: Entry) -> tuple[int | None, int, int]:
    return entry.protocol, entry.first, entry.last


def _tiers(direction: Direction, rules: list[Rule], endpoint: Endpoint, resolver: Resolver) -> tuple[TierPolicy, ...]:
    by_level: dict[Level, list[Rule]] = {}
    for rule in rules:
        by_level.setdefault(rule.level, []).append(rule)
    tiers: dict[Tier, list[list[Rule]]] = {}
    for level in sorted(by_level):
        tiers.setdefault(level.tier, []).append(by_level[level])
    found = (_tier(direction, tier, levels, endpoint, resolver) for tier, levels in tiers.items())
    return tuple(tier for tier in found if tier.stages or tier.denied_by or tier.audited_by)


def _tier(
    direction: Direction, tier: Tier, levels: list[list[Rule]], endpoint: Endpoint, resolver: Resolver
) -> TierPolicy:
    """Allow ingress from the local host at the end of the last stage, where only default deny would block it."""
    stages = [_stage(rules, endpoint, resolver) for rules in levels]
    closing = [rule for rules in levels for rule in rules if rule.default_deny]
    denied_by = _policies(rule for rule in closing if not _audited(rule, endpoint))
    audited_by = _policies(rule for rule in closing if _audited(rule, endpoint))
    if closing and direction is Direction.INGRESS:
        host = resolver.peers(_LOCALHOST) or (HOST,)
        stages[-1] = (*stages[-1], *_from_node(endpoint, host))
    return TierPolicy(tier.name, tuple(stage for stage in stages if stage), denied_by, audited_by)


def _from_node(endpoint: Endpoint, host: tuple[int, ...]) -> Iterator[Entry]:
    """What this node itself may reach."""
    if endpoint.node_access is None:
        yield Entry(Action.ALLOW, ALLOW_LOCALHOST, peers=host)
        return
    paths: dict[int, list[HttpRule]] = {}
    for port, path in endpoint.node_access:
        asked = paths.setdefault(port, [])
        if path:
            asked.append(HttpRule(NODE_PROBES, "GET", re.escape(path), number=len(asked) + 1))
    for port, rules in paths.items():
        l7 = HttpRules(tuple(rules)) if rules else None
        action = Action.REDIRECT if rules else Action.ALLOW
        yield Entry(action, NODE_PROBES, host, Protocol.TCP.value, port, port, l7)


def _stage(rules: list[Rule], endpoint: Endpoint, resolver: Resolver) -> Stage:
    entries = {entry for rule in rules for entry in _entries(rule, endpoint, resolver)}
    return tuple(sorted(entries, key=_entry_key))


def _audited(rule: Rule, endpoint: Endpoint) -> bool:
    return rule.audit or endpoint.audit


def _policies(rules: Iterable[Rule]) -> tuple[RuleRef, ...]:
    return tuple(sorted({_policy_ref(rule.ref) for rule in rules}, key=_ref_key))


def _entries(rule: Rule, endpoint: Endpoint, resolver: Resolver) -> Iterator[Entry]:
    rule = enforceable(rule)
    peers = resolver.peers(rule)
    if peers == ():
        return
    if rule.ref == ALLOW_LOCALHOST and rule.action is Action.ALLOW and peers is not None:
        yield from _from_node(endpoint, peers)
        return
    l7 = rule.l7 if rule.action is Action.ALLOW else None
    action = rule.action if l7 is None else Action.REDIRECT
    audit = action is Action.DENY and _audited(rule, endpoint) and not _is_guard(rule)
    cell = Entry(action, rule.ref, peers, l7=l7, refusal=rule.refusal, audit=audit, log=rule.log)
    if rule.ports is None:
        yield cell
        return
    for match in rule.ports:
        if match.name:
            yield from _named(cell, match, rule.direction, endpoint, resolver)
        else:
            for protocol in match.protocols:
                yield replace(cell, protocol=protocol, first=match.first, last=match.last)


def _named(
    cell: Entry, match: PortMatch, direction: Direction, endpoint: Endpoint, resolver: Resolver
) -> Iterator[Entry]:
    """Ingress: the endpoint's own named port. Egress: each destination pod's, so one name may be many numbers."""
    if direction is Direction.INGRESS:
        for protocol, number in numbers(match, endpoint.named_ports):
            yield replace(cell, protocol=protocol, first=number, last=number)
        return
    for (protocol, number), ids in resolver.by_port(match, cell.action).items():
        peers = ids if cell.peers is None else tuple(sorted(set(ids).intersection(cell.peers)))
        if peers:
            yield replace(cell, peers=peers, protocol=protocol, first=number, last=number)


@lru_cache(maxsize=REMEMBERED)
def _policy_ref(ref: RuleRef) -> RuleRef:
    return replace(ref, rule="", line=0)


# Canonical order: keys contain every field that can differ between two values.


@lru_cache(maxsize=REMEMBERED)
def _ref_key(ref: RuleRef) -> tuple[object, ...]:
    numbered = tuple(int(part) if part.isdecimal() else part for part in _NUMBERS.split(ref.rule))
    return (ref.kind, ref.namespace, ref.name, numbered, ref.file, ref.line)


def _entry_key(entry: Entry) -> tuple[object, ...]:
    """Strongest action first, then by document: the first entry is the one that verdicts name."""
    return (
        -entry.action,
        _ref_key(entry.ref),
        -1 if entry.protocol is None else entry.protocol,
        entry.first,
        entry.last,
        entry.peers is not None,
        entry.peers or (),
        repr(entry.l7),
        entry.refusal,
        entry.audit,
        entry.log,
    )


_NUMBERS: Final = re.compile(r"([0-9]+)")
