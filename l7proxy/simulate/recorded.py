"""Judges recorded flows by other policies than those in force: which verdict would this flow have?

The code that enforces gives the verdict (law 5): each distinct end of the flows becomes a pod or an identity of a
simulated cluster, with the labels that the flow has of it. What flows do not record (headers, queries, names of ports,
objects that policies refer to) is not guessed: the policies are evaluated once as if every such condition held that
allows, and none that denies, and once the other way round. If the verdicts differ, the flow cannot be judged.

One limit: of requests whose query was not recorded, none and an unknown one are tried. A pattern that matches only some
queries, and not by an explicit `\\?`, is taken not to match.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import msgspec
import re2

from l7proxy.cluster.identity_labels import DEFAULT, METADATA_NAME, Asked
from l7proxy.cluster.state import ClusterState
from l7proxy.errors import ConfigError, PeerError
from l7proxy.learn.observation import WORLDS, HttpRequest, Observation, Outcome, label
from l7proxy.learn.observation import End as SeenEnd
from l7proxy.model.cache import remember
from l7proxy.model.http import Request
from l7proxy.model.identity import Identity
from l7proxy.model.ids import IdentityId
from l7proxy.model.labels import K8S, NAMESPACE_LABELS_PREFIX, SERVICE_ACCOUNT_KEY, LabelSet
from l7proxy.model.net import family_of
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.model.resources import (
    Change,
    EndpointSlice,
    Namespace,
    Node,
    Pod,
    PolicyDocument,
    Resource,
    Upsert,
)
from l7proxy.model.verdict import Action, Direction, Verdict
from l7proxy.policy import lang
from l7proxy.policy.combine import evaluate_l4, evaluate_l7
from l7proxy.policy.compile import keys_of
from l7proxy.policy.decide import PortPolicy
from l7proxy.policy.http_table import HttpTable
from l7proxy.policy.references import References, unknown
from l7proxy.policy.rules import CidrPeer, HttpRules, PortMatch, Reach, Rule, leaves
from l7proxy.setting_definitions import Settings
from l7proxy.settings import derived
from l7proxy.simulate import trace
from l7proxy.simulate.cluster import NOBODYS, End, SimulatedNode
from l7proxy.wire.path import PathRules

NODE: Final = "recorded"
FIRST_RESERVED: Final = 128
"""Identity numbers of combinations of reserved labels: Cilium leaves 128 to 255 to its users."""
MAX_RESERVED: Final = 100
ANY_QUERY: Final = b"?l7proxy-unknown-query=1"
REMEMBERED: Final = 16384
"""Pairs of ends and ports whose policies are kept."""
MAX_ENDS: Final = 1 << 16
"""Different ends that are kept, for those who judge for a long time; then all are forgotten."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict of the new policies; or `unjudged` says why there is none."""

    policy_verdict: PolicyVerdict | None = None
    unjudged: str = ""

    @property
    def allowed(self) -> bool:
        return self.policy_verdict is not None and self.policy_verdict.verdict is not Verdict.DROPPED


@dataclass(frozen=True, slots=True)
class _Pair:
    """The policies of both directions for one connection, in one of the two worlds."""

    egress: PortPolicy | None
    ingress: PortPolicy | None


class Judge:
    """Judges observations by the policies in `changes`, with the other objects there that they refer to.

    `queries_recorded`: a request that was seen without a query had none.
    """

    def __init__(self, changes: Sequence[Change], settings: Settings, *, queries_recorded: bool = False) -> None:
        self.queries_recorded = queries_recorded
        self._paths = derived.http_options(settings).paths
        given = [one for one in changes if not (isinstance(one, Upsert) and isinstance(one.resource, Pod | Node))]
        references = _references(given, settings)
        worlds = [_World([_changed(one, references, kind) for one in given], settings) for kind in (True, False)]
        self._needs = _needs(given, references)
        self._worlds = worlds if self._needs else worlds[:1]

    @property
    def warnings(self) -> list[str]:
        """What makes judgements of all flows doubtful."""
        return self._worlds[0].warnings

    def enrol(self, some: Iterable[Observation]) -> None:
        """Make the ends of these observations known. A new end makes policies be compiled again, so all at once."""
        for seen in some:
            for world in self._worlds:
                world.ends(seen)

    def judge(self, seen: Observation) -> Judgement:
        for end, who in ((seen.source, "source"), (seen.destination, "destination")):
            if not end.is_known:
                return Judgement(unjudged=f"the labels of the {who} are not recorded")
        found = [self._judge_in(world, seen) for world in self._worlds]
        for one in found:
            if one.unjudged:
                return one
        if len({one.allowed for one in found}) > 1:
            return Judgement(unjudged=f"depends on what flows do not record: {', '.join(self._needs)}")
        return found[-1]

    def _judge_in(self, world: _World, seen: Observation) -> Judgement:
        why, pair = world.between(seen)
        if pair is None:
            return Judgement(unjudged=why)
        both = evaluate_l4(pair.egress, pair.ingress)
        if not _may_have_been_refused_later(seen):
            return self._verdict(pair, seen)
        mine = self._verdict(_Pair(pair.egress, None), seen)
        if mine.unjudged or not mine.allowed or (seen.request is None and both.verdict is not Verdict.DROPPED):
            return mine
        if self._verdict(pair, seen).allowed:
            return mine
        return Judgement(unjudged="the verdict of the destination is not in this flow, and it would refuse")

    def _verdict(self, pair: _Pair, seen: Observation) -> Judgement:
        on_connection = evaluate_l4(pair.egress, pair.ingress)
        if seen.request is None or on_connection.verdict is not Verdict.REDIRECTED:
            return Judgement(on_connection)
        if seen.request.path is None:
            return Judgement(unjudged="the URL of the request is not recorded whole")
        head = _head(seen.request, seen.request.path, self._paths)
        if isinstance(head, str):
            return Judgement(unjudged=head)
        unknown_query = not (self.queries_recorded or seen.request.has_query or seen.request.path == "*")
        paths = [head.path, head.path + ANY_QUERY] if unknown_query else [head.path]
        found = [
            Judgement(evaluate_l7(pair.egress, pair.ingress, Request(head.method, path, head.host, head.headers)))
            for path in paths
        ]
        if len({one.allowed for one in found}) > 1:
            return Judgement(unjudged="the query of the request is not recorded")
        if unknown_query and not found[0].allowed and _wants_query(pair, seen.request.path):
            return Judgement(unjudged="the query of the request is not recorded, and a rule asks for one")
        return found[0]


def _may_have_been_refused_later(seen: Observation) -> bool:
    """What was let out by a node of the source alone; the verdict of the destination's node is another flow."""
    let_out = seen.outcome is not Outcome.DENIED and seen.direction is Direction.EGRESS
    return let_out and not (seen.both and seen.destination.here)


def _head(request: HttpRequest, path: str, paths: PathRules) -> Request | str:
    """The request as a worker would read it; or why it cannot be."""
    headers = [f"{key}: {value}" for key, value in request.headers if _is_shown(key, value)]
    host = request.host or "unknown"
    try:
        head = trace.request_of(f"{request.method} {path}", [f"Host: {host}", *headers], host, paths)
    except ConfigError as error:
        return f"the request cannot be read: {error}"
    if isinstance(head, PeerError):
        return f"a worker would refuse the request before rules are evaluated: {head}"
    return Request(head.method, head.path, head.host, head.headers)


def _is_shown(key: str, value: str) -> bool:
    """Whether a recorded header can be evaluated: it is whole, not redacted, and does not frame the message."""
    framing = key.lower() in ("host", "content-length", "transfer-encoding", "connection", "upgrade", "expect")
    redacted = "redacted" in value.lower() or value.endswith("…")
    return key.isascii() and value.isascii() and value.isprintable() and not framing and not redacted


def _wants_query(pair: _Pair, path: str) -> bool:
    """Whether a rule would match this path with a certain query only: it matches up to its `\\?`."""
    return any(
        _matches_before_query(rule.path, path)
        for policy in (pair.egress, pair.ingress)
        for table in (policy.tables if policy is not None else ())
        if isinstance(table, HttpTable)
        for rule in table.rules
        if rule.path is not None
    )


def _matches_before_query(pattern: str, path: str) -> bool:
    at = min((place for place in (pattern.find("\\?"), pattern.find("[?]")) if place >= 0), default=-1)
    if at < 0:
        return False
    before = pattern[:at]
    while before.endswith(("(", "(?:")):
        before = before.removesuffix("(?:").removesuffix("(")
    try:
        return re2.fullmatch(before, path) is not None and re2.fullmatch(pattern, path) is None
    except re2.error:
        return True


# --- the two worlds


def _references(changes: Iterable[Change], settings: Settings) -> References:
    state = derived.empty_cluster(settings)
    state.apply(changes)
    return state.references


def _changed(change: Change, references: References, hopeful: bool) -> Change:
    """The policy with what flows do not record replaced: as if it held (`hopeful`: where that allows), or not."""
    if not isinstance(change, Upsert) or not isinstance(change.resource, PolicyDocument):
        return change
    document = change.resource
    if not isinstance(document.parsed, lang.Read):
        return change
    rules = tuple(_rule(rule, references, hopeful) for rule in document.parsed.rules)
    return Upsert(replace(document, parsed=replace(document.parsed, rules=rules)))


def _rule(rule: Rule, references: References, hopeful: bool) -> Rule:
    holds = hopeful is (rule.action is not Action.DENY)
    if not holds:
        return rule
    if any(True for _ in unknown((rule,), references)):
        rule = replace(rule, peers=None)
    if any(match.name for match in rule.ports or ()):
        rule = replace(rule, ports=tuple(map(_any_number, rule.ports or ())))
    if rule.action is Action.ALLOW and isinstance(rule.l7, HttpRules):
        plain = tuple(replace(one, headers=(), header_matches=()) for one in rule.l7.rules)
        rule = replace(rule, l7=HttpRules(plain))
    return rule


def _any_number(match: PortMatch) -> PortMatch:
    return replace(match, first=0, last=65535, name="") if match.name else match


def _needs(changes: Iterable[Change], references: References) -> list[str]:
    """What the rules ask for that flows do not record, in words."""
    found: dict[str, None] = {}
    for rule in _written(changes):
        for one in rule.http:
            names = [*(each.name for each in one.headers), *(each.name for each in one.header_matches)]
            found.update((f"header {name}", None) for name in names)
        found.update((f"port {match.name}", None) for match in rule.ports or () if match.name)
        found.update((name, None) for _, name in unknown((rule,), references))
    return list(found)


def _written(changes: Iterable[Change]) -> Iterator[Rule]:
    for one in _resources(changes):
        if isinstance(one, PolicyDocument) and isinstance(one.parsed, lang.Read):
            yield from one.parsed.rules


def _resources(changes: Iterable[Change]) -> Iterator[Resource]:
    return (one.resource for one in changes if isinstance(one, Upsert))


@dataclass
class _World:
    """A simulated cluster of one node, with a pod for each different end of the flows on either side.

    A pod is there twice, as a source and as a destination, because one flow may be between two pods with equal labels.
    """

    changes: Sequence[Change]
    settings: Settings
    _state: ClusterState = field(init=False)
    _pods: dict[tuple[object, ...], End] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _reserved: dict[frozenset[str], IdentityId] = field(default_factory=dict)
    _apiservers: set[str] = field(default_factory=set)
    _namespaces: set[str] = field(default_factory=set)
    _node: SimulatedNode | None = None
    _known: dict[tuple[object, ...], _Pair] = field(default_factory=dict)
    _dual: bool = False
    _cluster: str = ""

    def __post_init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._pods, self._taken, self._apiservers, self._node, self._dual = {}, set(), set(), None, False
        settings = msgspec.structs.replace(self.settings, cluster=self._cluster) if self._cluster else self.settings
        self._state = derived.empty_cluster(settings)
        self._state.apply(self.changes)
        self._namespaces = {one.name for one in _resources(self.changes) if isinstance(one, Namespace)}
        self._free = iter(NOBODYS[4].hosts())
        self._apply(Node(NODE, (str(next(self._free)),)))

    @cached_property
    def _rules(self) -> tuple[Rule, ...]:
        return tuple(_written(self.changes))

    @cached_property
    def _by_address(self) -> bool:
        """Whether rules name addresses of pods, so that pods with equal labels may differ."""
        peers = (peer for rule in self._rules for peer in leaves(rule.peers or ()))
        return any(isinstance(peer, CidrPeer) and peer.reach is Reach.ANYWHERE for peer in peers)

    @property
    def warnings(self) -> list[str]:
        asked = Asked.among(keys_of(self._rules), DEFAULT)
        keys = sorted(asked.own | asked.account)
        return [f"policies select by labels that flows do not record: {', '.join(keys)}"] if keys else []

    def _apply(self, *resources: Resource) -> None:
        self._state.apply(Upsert(one) for one in resources)
        self._node = None

    def between(self, seen: Observation) -> tuple[str, _Pair | None]:
        """The policies of this connection; or why they are not known."""
        ends = self.ends(seen)
        for one in ends:
            if isinstance(one, str):
                return one, None
        source, destination = (one for one in ends if isinstance(one, End))
        if seen.source.address and seen.source.address == seen.destination.address and not seen.source.reserved:
            return "", _Pair(None, None)
        if self._node is None:
            self._known.clear()
            view = self._state.view(None)
            own: dict[int, Identity] = {
                number: Identity(number, LabelSet.reserved(*names)) for names, number in self._reserved.items()
            }
            self._node = SimulatedNode(replace(view, identities={**view.identities, **own}))
        key = (source.address, source.identity, destination.address, destination.identity, seen.protocol, seen.port)
        pair = self._known.get(key)
        if pair is None:
            found = self._node.between(source, destination, seen.protocol, seen.port)
            pair = remember(self._known, key, _Pair(found.egress, found.ingress), REMEMBERED)
        return "", pair

    def ends(self, seen: Observation) -> list[End | str]:
        """Source and destination; or why they are not known."""
        if len(self._pods) > MAX_ENDS:
            self._reset()
        return [self._end(seen.source, "source"), self._end(seen.destination, "destination")]

    def _end(self, end: SeenEnd, side: str) -> End | str:
        if not end.reserved:
            return self._pod(end, side)
        if not end.reserved & WORLDS:
            return self._of_reserved(end)
        if not end.address:
            return f"the address of the {side} is not recorded"
        if "kube-apiserver" in end.reserved and end.address not in self._apiservers:
            self._apiservers.add(end.address)
            self._apply(EndpointSlice("default", "kubernetes", "kubernetes", tuple(sorted(self._apiservers))))
        if family_of(end.address) == 6 and not self._dual:
            self._dual = True
            addresses = (next(iter(self._state.nodes())).addresses[0], str(next(iter(NOBODYS[6].hosts()))))
            self._apply(Node(NODE, addresses))
        return End(end.address, end.address)

    def _of_reserved(self, end: SeenEnd) -> End | str:
        number = self._reserved.get(end.reserved)
        if number is None:
            if len(self._reserved) >= MAX_RESERVED:
                return "too many different reserved identities"
            number = self._reserved[end.reserved] = IdentityId(FIRST_RESERVED + len(self._reserved))
            self._node = None
        return End(str(end), identity=number)

    def _pod(self, end: SeenEnd, side: str) -> End | str:
        if end.cluster and not self._cluster and not self._pods:
            self._cluster = end.cluster
            self._reset()
        if end.cluster and self._cluster and end.cluster != self._cluster:
            return f"the {side} is in another cluster, {end.cluster}"
        by_address = end.address if self._by_address else ""
        key = ("" if by_address else side, end.namespace, end.labels, by_address)
        if key not in self._pods:
            if by_address in self._taken:
                return f"the address of the {side} belonged to pods with different labels"
            self._pods[key] = self._new_pod(end, by_address)
        return self._pods[key]

    def _new_pod(self, end: SeenEnd, by_address: str) -> End:
        address = by_address or str(next(self._free))
        self._taken.add(address)
        labels = dict(_pairs(end.labels))
        spaces = {
            key.removeprefix(NAMESPACE_LABELS_PREFIX): labels.pop(key)
            for key in list(labels)
            if key.startswith(NAMESPACE_LABELS_PREFIX)
        }
        account = label(end.labels, SERVICE_ACCOUNT_KEY) or "default"
        pod = Pod(end.namespace, f"end-{len(self._pods)}", NODE, (address,), labels, service_account=account)
        if end.namespace not in self._namespaces:
            self._namespaces.add(end.namespace)
            self._apply(Namespace(end.namespace, {METADATA_NAME: end.namespace, **spaces}))
        self._apply(pod)
        return End(str(end), address, pod=pod)


def _pairs(labels: Iterable[str]) -> Iterator[tuple[str, str]]:
    for text in labels:
        source, _, rest = text.partition(":")
        if source == K8S:
            key, _, value = rest.partition("=")
            yield key, value
