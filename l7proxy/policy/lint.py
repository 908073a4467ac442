"""Lint: rules that are valid and enforced as written, but perhaps not what their author meant.

`of_document` and `of_rules` look at what is written, `of_peers` and `of_tables` at what it comes to among the endpoints
at hand. A finding never changes a verdict. Each has a code, so that people can look it up and scripts can choose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from l7proxy.model.endpoint import Endpoint
from l7proxy.model.identity import Identity
from l7proxy.model.labels import EVERYTHING, RESERVED, Requirement, Selector
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.decision import policy_name
from l7proxy.policy.explain import ports
from l7proxy.policy.match.pattern import PatternSet
from l7proxy.policy.references import References, unknown
from l7proxy.policy.rules import HttpRule, Rule, SelectorPeer
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry, Stage

_INNER_ANY: Final = re.compile(r"(?<!\\)\.[*+](?=.*/)")
"""`.*` or `.+` with a slash somewhere behind it: it may match slashes, too."""
_ENDS_OPEN: Final = re.compile(r"(?:\.[*+]|\$|\))$")
_PEER_LISTS: Final = frozenset(
    f"{way}{what}" for way in ("from", "to") for what in ("Endpoints", "Entities", "CIDR", "CIDRSet", "Nodes")
)
_BUILT_IN: Final = "built-in"


@dataclass(frozen=True, slots=True)
class Finding:
    """`code` is stable; `ref` is the rule that it is about."""

    code: str
    ref: RuleRef
    message: str


@dataclass(frozen=True, slots=True)
class FieldFinding:
    """The same about a field of a document, which may hold no rule at all. `at` is its path."""

    code: str
    at: str
    message: str


def of_document(document: Mapping[Any, Any]) -> Iterator[FieldFinding]:
    """What a Cilium document's fields suggest before they are rules."""
    for base, spec in _specs(document):
        for key in ("ingress", "ingressDeny", "egress", "egressDeny"):
            items = spec.get(key)
            for number, item in enumerate(items if isinstance(items, list) else ()):
                if isinstance(item, Mapping):
                    yield from _empty_lists(f"{base}.{key}[{number}]", item)
        egress = spec.get("egress")
        yield from _names_nobody_learns(base, egress if isinstance(egress, list) else [])


def _specs(document: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    if not str(document.get("apiVersion", "")).startswith("cilium.io/"):
        return
    specs = document.get("specs")
    found = [("spec", document.get("spec"))]
    found += [(f"specs[{number}]", spec) for number, spec in enumerate(specs if isinstance(specs, list) else ())]
    yield from ((base, spec) for base, spec in found if isinstance(spec, Mapping))


def _empty_lists(at: str, item: Mapping[Any, Any]) -> Iterator[FieldFinding]:
    for key, value in item.items():
        if value == [] and key in _PEER_LISTS:
            message = "an empty list is nobody; leave the key out to mean everyone"
            yield FieldFinding("empty-is-nobody", f"{at}.{key}", message)


def _names_nobody_learns(base: str, egress: list[Any]) -> Iterator[FieldFinding]:
    """toFQDNs lives on what a dns rule has seen: without one no name has an address."""
    items = [item for item in egress if isinstance(item, Mapping)]
    cells = [cell for item in items for cell in item.get("toPorts") or () if isinstance(cell, Mapping)]
    if any(isinstance(cell.get("rules"), Mapping) and cell["rules"].get("dns") for cell in cells):
        return
    for number, item in enumerate(egress):
        if isinstance(item, Mapping) and item.get("toFQDNs"):
            message = "without a dns rule no name is ever learned, so this allows nothing"
            yield FieldFinding("fqdn-without-dns", f"{base}.egress[{number}].toFQDNs", message)


def of_rules(rules: Iterable[Rule]) -> Iterator[Finding]:
    """What the text of one document's rules suggests."""
    rules = list(rules)
    for rule in rules:
        for http in rule.http or ():
            if rule.ref.kind.startswith("Cilium"):  # elsewhere the author wrote no pattern
                yield from _path(http)
    yield from _get_without_head(rules)


def of_peers(rules: Iterable[Rule], identities: Mapping[int, Identity]) -> Iterator[Finding]:
    """Selectors that match nobody of those at hand. Reserved labels are left out: they need no pod."""
    everybody = [identity.labels for identity in identities.values()]
    known: dict[Selector, bool] = {}
    for rule in rules:
        for peer in rule.peers or ():
            if not isinstance(peer, SelectorPeer) or not isinstance(peer.selector, Selector):
                continue
            selector = peer.selector
            if selector == EVERYTHING or any(_is_reserved(one) for one in selector.requirements):
                continue
            if selector not in known:
                known[selector] = any(selector.matches(labels) for labels in everybody)
            if not known[selector]:
                yield Finding("selects-nobody", rule.ref, f"the peer {selector} is none of the pods given")


def of_names(rules: Iterable[Rule], references: References) -> Iterator[Finding]:
    """Services, groups and nodes that rules name and nobody has, among those at hand."""
    for ref, name in dict.fromkeys(unknown(rules, references)):
        yield Finding("names-nobody", ref, f"there is no {name} here, so it means nobody")


def of_tables(policies: Mapping[int, EndpointPolicy], endpoints: Iterable[Endpoint]) -> Iterator[Finding]:
    """L4 rules that take the force of L7 rules: each pair of rules once, with a pod where it is so."""
    told: set[tuple[RuleRef, RuleRef]] = set()
    for endpoint in endpoints:
        policy = policies.get(endpoint.id)
        for direction in Direction.INGRESS, Direction.EGRESS:
            table = policy.direction(direction) if policy is not None else None
            for judged, plain in _voided(table) if table is not None else ():
                if (judged.ref, plain.ref) not in told:
                    told.add((judged.ref, plain.ref))
                    yield Finding("l7-void", judged.ref, _void(judged, plain, direction, endpoint))


def _path(http: HttpRule) -> Iterator[Finding]:
    path = http.path
    if path is None:
        return
    if _INNER_ANY.search(path):
        yield Finding(
            "crosses-slash", http.ref, f"path {path}: `.` also matches `/`, so more levels pass; write [^/]+ for one"
        )
    if path.startswith("^") and not _ENDS_OPEN.search(path):
        yield Finding(
            "not-a-prefix", http.ref, f"path {path}: the whole path must match, not its beginning; write {path[1:]}.*"
        )
    elif path.endswith("/"):
        yield Finding("not-a-prefix", http.ref, f"path {path}: nothing below it matches; write {path}.* for that")


def _get_without_head(rules: Iterable[Rule]) -> Iterator[Finding]:
    """Once for a document: a rule for GET, and no rule for the same path that HEAD matches."""
    by_path: dict[str | None, list[HttpRule]] = {}
    for rule in rules:
        for http in rule.http or ():
            by_path.setdefault(http.path, []).append(http)
    for path, found in by_path.items():
        gets = [http for http in found if _takes(http, b"GET")]
        if gets and not any(_takes(http, b"HEAD") for http in found):
            where = "any path" if path is None else path
            yield Finding("get-without-head", gets[0].ref, f"GET of {where} is allowed but HEAD is not")
            return


def _takes(http: HttpRule, method: bytes) -> bool:
    return http.method is None or bool(PatternSet((http.method,)).find(method))


def _is_reserved(requirement: Requirement) -> bool:
    return requirement.source == RESERVED


def _voided(table: DirectionPolicy) -> Iterator[tuple[Entry, Entry]]:
    for tier in table.tiers:
        for place, stage in enumerate(tier.stages):
            redirects = [entry for entry in stage if entry.action is Action.REDIRECT]
            plain = _plain(tier.stages[place:]) if redirects else []
            for judged in redirects:
                yield from ((judged, entry) for entry in plain if _overlap(judged, entry))


def _plain(stages: Iterable[Stage]) -> list[Entry]:
    """Entries that let every request in. A later one counts as well: what no HTTP rule matches goes on to it."""
    return [
        entry for stage in stages for entry in stage if entry.action is Action.ALLOW and entry.ref.kind != _BUILT_IN
    ]


def _overlap(one: Entry, other: Entry) -> bool:
    same_port = other.protocol is None or one.protocol is None or one.protocol == other.protocol
    meets = max(one.first, other.first) <= min(one.last, other.last)
    return same_port and (meets or None in (one.protocol, other.protocol)) and _share(one.peers, other.peers)


def _share(one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> bool:
    return one is None or other is None or not set(one).isdisjoint(other)


def _void(judged: Entry, plain: Entry, direction: Direction, endpoint: Endpoint) -> str:
    everyone = plain.peers is None or (judged.peers is not None and set(judged.peers) <= set(plain.peers))
    whom = "its peers" if everyone else "some of its peers"
    place = f" ({plain.ref.file}:{plain.ref.line})" if plain.ref.file else ""
    return (
        f"its HTTP rules are void for {whom}: {policy_name(plain.ref)} {plain.ref.rule}{place} allows them "
        f"{ports(plain)} whatever they ask ({direction.word} of {endpoint})"
    )
