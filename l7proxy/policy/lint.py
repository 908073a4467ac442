"""Lint: finds rules that are valid and enforced as written, but perhaps not what their author meant.

`of_document` and `of_rules` check the text, `of_peers` and `of_tables` its effect on the given endpoints. A finding
never changes a verdict. Each has a code, for documentation and for filters in scripts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from l7proxy.model.endpoint import Endpoint
from l7proxy.model.identity import Identity
from l7proxy.model.labels import ANY, EVERYTHING, K8S, OWN, RESERVED, Selector, Selects
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.decision import rule_name
from l7proxy.policy.explain import ports
from l7proxy.policy.l7 import kind_of
from l7proxy.policy.match.pattern import PatternSet
from l7proxy.policy.references import References, unknown
from l7proxy.policy.rules import AnyPeer, EveryPeer, HttpRule, Peer, PortMatch, Rule, SelectorPeer
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry
from l7proxy.policy.tiers import UNPLACED

_INNER_ANY: Final = re.compile(r"(?<!\\)\.[*+](?=.*/)")
"""`.*` or `.+` with a slash somewhere after it: it may match slashes too."""
_ENDS_OPEN: Final = re.compile(r"(?:\.[*+]|\$|\))$")
_PEER_LISTS: Final = tuple(
    f"{way}{what}" for way in ("from", "to") for what in ("Endpoints", "Entities", "CIDR", "CIDRSet", "Nodes")
)
_KUBERNETES_LISTS: Final = ("from", "to", "ports")
_BUILT_IN: Final = "built-in"


@dataclass(frozen=True, slots=True)
class Finding:
    """`code` is stable; `ref` is the rule that it is about."""

    code: str
    ref: RuleRef
    message: str


@dataclass(frozen=True, slots=True)
class FieldFinding:
    """A finding about a field of a document, which may contain no rule. `at` is the path of the field."""

    code: str
    at: str
    message: str


def of_document(document: Mapping[Any, Any]) -> Iterator[FieldFinding]:
    """Findings in the fields of a document: places where `[]` may not mean what its author thinks."""
    if str(document.get("apiVersion", "")).startswith("networking.k8s.io/"):
        for at, item in _items("spec", document.get("spec"), ("ingress", "egress")):
            yield from _empty(
                at,
                item,
                _KUBERNETES_LISTS,
                "empty-matches-everything",
                "an empty list is the same as an absent one: it restricts nothing",
            )
    for base, spec in _specs(document):
        for at, item in _items(base, spec, ("ingress", "ingressDeny", "egress", "egressDeny")):
            message = "an empty list matches no peer; remove the field to match every peer"
            yield from _empty(at, item, _PEER_LISTS, "empty-matches-nothing", message)
            if len(item) > 1:
                yield from _empty(
                    at,
                    item,
                    ("toPorts",),
                    "empty-matches-everything",
                    "an empty list is the same as an absent one: every port",
                )
            for cell_at, cell in _items(at, item, ("toPorts",)):
                yield from _ports(cell_at, cell)


def _specs(document: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The specs of a Cilium policy, each with its path."""
    if not str(document.get("apiVersion", "")).startswith("cilium.io/"):
        return
    specs = document.get("specs")
    found = [("spec", document.get("spec"))]
    found += [(f"specs[{number}]", spec) for number, spec in enumerate(specs if isinstance(specs, list) else ())]
    yield from ((base, spec) for base, spec in found if isinstance(spec, Mapping))


def _items(base: str, found: object, keys: Iterable[str]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The mappings in these lists, each with its path."""
    for key in keys if isinstance(found, Mapping) else ():
        items = found.get(key) if isinstance(found, Mapping) else None
        for number, item in enumerate(items if isinstance(items, list) else ()):
            if isinstance(item, Mapping):
                yield f"{base}.{key}[{number}]", item


def _empty(at: str, item: Mapping[Any, Any], keys: Iterable[str], code: str, message: str) -> Iterator[FieldFinding]:
    for key in keys:
        if item.get(key) == []:
            yield FieldFinding(code, f"{at}.{key}", message)


def _ports(at: str, cell: Mapping[Any, Any]) -> Iterator[FieldFinding]:
    """One item of toPorts."""
    if not cell.get("ports"):
        message = "no ports are listed, so this matches no port; remove toPorts to match every port"
        yield FieldFinding("empty-matches-nothing", at, message)
    rules = cell.get("rules")
    if isinstance(rules, Mapping):
        message = "no rules are listed, so every request is allowed; use [{}] to allow, parse and log every request"
        yield from _empty(f"{at}.rules", rules, ("http",), "empty-matches-everything", message)


def of_names_learned(documents: Iterable[Mapping[Any, Any]]) -> Iterator[tuple[int, FieldFinding]]:
    """toFQDNs needs the names that a dns rule learns: without a dns rule in any document no name has an address.

    Each finding comes with the index of its document.
    """
    egress = [
        (number, at, item)
        for number, document in enumerate(documents)
        for base, spec in _specs(document)
        for at, item in _items(base, spec, ("egress",))
    ]
    cells = [cell for _, _, item in egress for _, cell in _items("", item, ("toPorts",))]
    if any(isinstance(cell.get("rules"), Mapping) and cell["rules"].get("dns") for cell in cells):
        return
    for number, at, item in egress:
        if item.get("toFQDNs"):
            message = "no policy has a dns rule, so no names are resolved and this allows nothing"
            yield number, FieldFinding("fqdn-without-dns", f"{at}.toFQDNs", message)


def of_rules(rules: Iterable[Rule]) -> Iterator[Finding]:
    """Findings in the rules of one document."""
    rules = list(rules)
    for rule in rules:
        for http in rule.http:
            if rule.ref.kind.startswith("Cilium"):  # elsewhere the author wrote no pattern
                yield from _path(http)
    yield from _get_without_head(rules)


def of_peers(rules: Iterable[Rule], identities: Mapping[int, Identity]) -> Iterator[Finding]:
    """Selectors that match none of the given pods. Selectors with reserved labels are skipped: they need no pod.

    Calico's selectors also match network sets: reported only when they match neither a pod nor a network set.
    """
    everybody = [identity.labels for identity in identities.values()]
    known: dict[Selects, bool] = {}

    def matches_nothing(peer: Peer) -> bool:
        if not isinstance(peer, SelectorPeer) or _is_of_reserved(peer.selector):
            return False
        if peer.selector not in known:
            known[peer.selector] = not any(peer.selector.matches(labels) for labels in everybody)
        return known[peer.selector]

    for rule in rules:
        if rule.ref.kind == _BUILT_IN:
            continue
        for peer in rule.peers or ():
            if isinstance(peer, SelectorPeer) and isinstance(peer.selector, Selector) and matches_nothing(peer):
                yield Finding(
                    "peer-selects-nothing",
                    rule.ref,
                    f"the peer selector {peer.selector} matches none of the given pods",
                )
        for some in _alternatives(rule.peers or ()):
            if some and all(isinstance(peer, SelectorPeer) and matches_nothing(peer) for peer in some):
                message = "its peer matches none of the given pods and network sets"
                yield Finding("peer-selects-nothing", rule.ref, message)


def _alternatives(peers: tuple[Peer, ...]) -> Iterator[tuple[Peer, ...]]:
    """For Calico's entities: lists of peers of which at least one must match."""
    if any(isinstance(peer, SelectorPeer) and not isinstance(peer.selector, Selector) for peer in peers):
        yield peers
    for peer in peers:
        if isinstance(peer, EveryPeer):
            for part in peer.all_of:
                yield from _alternatives(part.any_of if isinstance(part, AnyPeer) else (part,))


def of_names(rules: Iterable[Rule], references: References) -> Iterator[Finding]:
    """Services, CIDR groups and nodes that rules name but that do not exist."""
    for ref, name in dict.fromkeys(unknown(rules, references)):
        yield Finding("unknown-reference", ref, f"{name} does not exist, so this matches no peer")


def of_pairs(rules: Iterable[Rule]) -> Iterator[Finding]:
    """Like `of_tables` when no pods are given: only HTTP rules that have no effect for any pods."""
    plain = [rule for rule in rules if rule.action is Action.ALLOW and rule.l7 is None and not rule.refusal]
    for judged in rules:
        for other in plain if judged.l7 is not None and judged.action is Action.ALLOW else ():
            if _makes_void(other, judged):
                message = f"{_its(judged)} have no effect: {rule_name(other.ref)} allows every request"
                yield Finding("l7-shadowed", judged.ref, message)
                break


def _its(judged: Rule | Entry) -> str:
    """`its HTTP rules`"""
    return "its rules" if judged.l7 is None else f"its {kind_of(judged.l7).name} rules"


def _makes_void(plain: Rule, judged: Rule) -> bool:
    """Whether `plain` covers all of `judged` on some of its ports, and its tier is not evaluated later."""
    tiers = plain.level.tier, judged.level.tier
    if plain.direction is not judged.direction or tiers[0] > tiers[1] or UNPLACED in (tier.order for tier in tiers):
        return False
    if () in (plain.peers, judged.peers):
        return False
    if not isinstance(plain.subject, Selector) or not isinstance(judged.subject, Selector):
        return False
    if not _terms(plain.subject) <= _terms(judged.subject):
        return False
    if plain.peers is not None and not all(
        any(_holds(mine, one) for mine in plain.peers) for one in judged.peers or (None,)
    ):
        return False
    return plain.ports is None or any(_meet(one, other) for one in plain.ports for other in judged.ports or ())


def _terms(selector: Selector) -> frozenset[tuple[object, ...]]:
    """The requirements, with equal sources for all spellings of the pod's own labels."""
    return frozenset(
        ("" if one.source in (ANY, OWN, K8S) else one.source, one.key, one.operator, one.values)
        for one in selector.requirements
    )


def _holds(peer: Peer, other: Peer | None) -> bool:
    """Whether `peer` covers `other` (None is every peer), compared by their text."""
    if isinstance(peer, SelectorPeer) and isinstance(peer.selector, Selector):
        if peer.selector == EVERYTHING:
            return True
        if isinstance(other, SelectorPeer) and isinstance(other.selector, Selector):
            return _terms(peer.selector) <= _terms(other.selector)
    return peer == other


def _meet(one: PortMatch, other: PortMatch) -> bool:
    if not one.protocols & other.protocols or one.name != other.name:
        return False
    return max(one.first, other.first) <= min(one.last, other.last)


def of_tables(policies: Mapping[int, EndpointPolicy], endpoints: Iterable[Endpoint]) -> Iterator[Finding]:
    """L4 rules that leave L7 rules without effect: each pair of rules once, with one pod as example."""
    reported: set[tuple[RuleRef, RuleRef]] = set()
    for endpoint in endpoints:
        policy = policies.get(endpoint.id)
        for direction in Direction.INGRESS, Direction.EGRESS:
            table = policy.direction(direction) if policy is not None else None
            for judged, plain in _voided(table) if table is not None else ():
                if (judged.ref, plain.ref) not in reported:
                    reported.add((judged.ref, plain.ref))
                    yield Finding("l7-shadowed", judged.ref, _void(judged, plain, direction, endpoint))


def _path(http: HttpRule) -> Iterator[Finding]:
    path = http.path
    if path is None:
        return
    if _INNER_ANY.search(path):
        yield Finding(
            "crosses-slash",
            http.ref,
            f"path {path}: `.` also matches `/`, so it matches more than one level; use [^/]+ to match one",
        )
    if path.startswith("^") and not _ENDS_OPEN.search(path):
        yield Finding(
            "not-a-prefix",
            http.ref,
            f"path {path}: the pattern must match the whole path, not a prefix; use {path[1:]}.*",
        )
    elif path.endswith("/"):
        yield Finding(
            "not-a-prefix", http.ref, f"path {path}: it does not match paths below it; use {path}.* for those"
        )


def _get_without_head(rules: Iterable[Rule]) -> Iterator[Finding]:
    """At most once per document: a rule for GET without a rule that allows HEAD on the same path."""
    by_path: dict[str | None, list[HttpRule]] = {}
    for rule in rules:
        for http in rule.http:
            by_path.setdefault(http.path, []).append(http)
    for path, found in by_path.items():
        gets = [http for http in found if _takes(http, b"GET")]
        if gets and not any(_takes(http, b"HEAD") for http in found):
            written = gets[0].ref.kind.startswith("Cilium")  # elsewhere the pattern is ours
            where = "" if not written else f" of {'any path' if path is None else path}"
            yield Finding("get-without-head", gets[0].ref, f"GET{where} is allowed but HEAD is not")
            return


def _takes(http: HttpRule, method: bytes) -> bool:
    return http.method is None or bool(PatternSet((http.method,)).find(method))


def _is_of_reserved(selector: Selects) -> bool:
    if not isinstance(selector, Selector):
        return False
    return selector == EVERYTHING or any(one.source == RESERVED for one in selector.requirements)


def _voided(table: DirectionPolicy) -> Iterator[tuple[Entry, Entry]]:
    """Entries with HTTP rules, each with an entry that allows every request: evaluated before, with or after them in
    their tier, because a request that no HTTP rule matches goes to the next stage."""
    plain: list[Entry] = []
    for tier in table.tiers:
        entries = [entry for stage in tier.stages for entry in stage]
        plain += [entry for entry in entries if entry.action is Action.ALLOW and entry.ref.kind != _BUILT_IN]
        redirects = [entry for entry in entries if entry.action is Action.REDIRECT] if plain else []
        yield from ((judged, entry) for judged in redirects for entry in plain if _overlap(judged, entry))


def _overlap(one: Entry, other: Entry) -> bool:
    same_port = other.protocol is None or one.protocol is None or one.protocol == other.protocol
    meets = max(one.first, other.first) <= min(one.last, other.last)
    return same_port and (meets or None in (one.protocol, other.protocol)) and _share(one.peers, other.peers)


def _share(one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> bool:
    return one is None or other is None or not set(one).isdisjoint(other)


def _void(judged: Entry, plain: Entry, direction: Direction, endpoint: Endpoint) -> str:
    everyone = plain.peers is None or (judged.peers is not None and set(judged.peers) <= set(plain.peers))
    whom = "its peers" if everyone else "some of its peers"
    return (
        f"{_its(judged)} have no effect for {whom}: {rule_name(plain.ref)} allows "
        f"every request on {ports(plain)} ({direction.word} of {endpoint})"
    )
