"""Parses Calico's NetworkPolicy and GlobalNetworkPolicy (projectcalico.org/v3, crd.projectcalico.org/v1), also staged.

Rules are evaluated in sequence, policies and tiers by their order: the first rule that covers a flow decides, Pass
leaves the tier, and at its end an undecided flow is denied (unless the Tier says Pass). Consecutive rules with one
action share a level, because their order has no effect (but a plain Allow before one with http has its own level, so
that its connections are not redirected). Log decides nothing, and every verdict is logged as a flow anyway. Calico
never applies policy to traffic from a node to its own pods: it is allowed at the start of the tier. A staged policy is
parsed and reported, never enforced. Fields for host endpoints are rejected by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from l7proxy.model.expression import AllOf, Not
from l7proxy.model.labels import EVERYTHING, RESERVED, Operator, Requirement, Selector, Selects
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import BOTH, Action, Direction, Protocol
from l7proxy.policy.lang import calico_peers, calico_ports, calico_selector, kubernetes, selectors
from l7proxy.policy.lang.calico_http import http_rule
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.envelope import opened
from l7proxy.policy.lang.fields import Field, Locate, quoted
from l7proxy.policy.lang.http import numbered
from l7proxy.policy.lang.options import Options
from l7proxy.policy.rules import HttpRule, HttpRules, Peer, PortMatch, Rule, SelectorPeer
from l7proxy.policy.tiers import ADMIN, BASELINE, DEFAULT, UNPLACED, Level, Tier

VERSIONS: Final[Mapping[str, str]] = {"projectcalico.org": "v3", "crd.projectcalico.org": "v1"}
NAMESPACED: Final = "NetworkPolicy"
KNOWN_AS: Final = "CalicoNetworkPolicy"
"""Our name for it, because Kubernetes has a NetworkPolicy too."""
GLOBAL: Final = "GlobalNetworkPolicy"
STAGED: Final = "StagedNetworkPolicy"
STAGED_GLOBAL: Final = "StagedGlobalNetworkPolicy"
STAGED_KUBERNETES: Final = "StagedKubernetesNetworkPolicy"

MAX_RULES: Final = 1024
"""Calico's limit for one direction."""

_ACTIONS: Final[Mapping[str, Action | None]] = {
    "Allow": Action.ALLOW,
    "Deny": Action.DENY,
    "Pass": Action.PASS,
    "Log": None,
}
_SPEC: Final = (
    "order", "tier", "selector", "serviceAccountSelector", "types", "ingress", "egress", "performanceHints",
)  # fmt: skip
_GLOBAL_SPEC: Final = ("namespaceSelector", "applyOnForward", "doNotTrack", "preDNAT")
_TIER: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PASSING: Final = (ADMIN, BASELINE)
"""Tiers with default action Pass."""
_NAMED: Final[Mapping[str, Tier]] = {
    **{tier.name: tier for tier in (ADMIN, DEFAULT, BASELINE)},
    "adminnetworkpolicy": ADMIN,
    "baselineadminnetworkpolicy": BASELINE,
}
_HOST: Final = SelectorPeer(Selector((Requirement(RESERVED, "host", Operator.EXISTS),)))
LOCAL_HOST: Final = RuleRef("built-in", "", "allow-localhost")
"""The rule that allows ingress from this node itself, to which Calico does not apply policy."""


def parse(root: Mapping[object, object], locate: Locate | None, options: Options) -> tuple[Document, tuple[Rule, ...]]:
    """The document with its notes and faults, and its rules, which are valid only without faults."""
    namespaced = root.get("kind") == NAMESPACED
    document, found = opened(root, locate, options, namespaced=namespaced)
    if namespaced:
        document.kind = KNOWN_AS
    rules = document.collect(partial(_spec, found.get("spec", Field({}, "spec")), document, staged=False))
    return document, tuple(numbered(rules))


def parse_staged(
    root: Mapping[object, object], locate: Locate | None, options: Options
) -> tuple[Document, tuple[Rule, ...]]:
    """Like `parse`, but never returns rules."""
    document, found = opened(root, locate, options, namespaced=root.get("kind") == STAGED)
    document.collect(partial(_spec, found.get("spec", Field({}, "spec")), document, staged=True))
    return document, ()


def parse_staged_kubernetes(
    root: Mapping[object, object], locate: Locate | None, options: Options
) -> tuple[Document, tuple[Rule, ...]]:
    spec = root.get("spec")
    if isinstance(spec, Mapping):
        root = {**root, "spec": {key: value for key, value in spec.items() if key != "stagedAction"}}
    document, _ = kubernetes.parse(root, locate, options)
    return document, ()


@dataclass(frozen=True, slots=True)
class _Scope:
    """What all rules of one policy share. Their levels are `level` with an index."""

    document: Document
    subject: Selects
    level: Level
    closes: bool


def _spec(spec: Field, document: Document, *, staged: bool) -> Iterator[Rule]:
    known = _SPEC if document.namespace else (*_SPEC, *_GLOBAL_SPEC)
    found = spec.mapping((*known, "stagedAction") if staged else known)
    for name in ("doNotTrack", "preDNAT"):
        if name in found and found[name].flag():
            found[name].fail(f"{name} policies are for host endpoints, which are not supported yet", unsupported=True)
    if "applyOnForward" in found:
        found["applyOnForward"].flag()
    for hint in found["performanceHints"].items() if "performanceHints" in found else ():
        hint.text()
    level = _level(found, document)
    whom: Selects = document.part(partial(subject, spec, document), EVERYTHING)
    scope = _Scope(document, whom, level, closes=level.tier not in _PASSING)
    items = {
        direction: found[direction.word].items(most=MAX_RULES, too_many=f"too many rules, the max is {MAX_RULES}")
        if direction.word in found
        else []
        for direction in BOTH
    }
    types = _types(found.get("types"), items)
    for direction in BOTH:
        rules = list(_direction(items[direction], direction, scope))
        if direction in types:
            at = found[direction.word].at if direction.word in found else spec.at
            yield Rule(
                document.counted_ref(at),
                scope.subject,
                direction,
                peers=(),
                default_deny=scope.closes,
                level=scope.level,
            )
            if direction is Direction.INGRESS:
                yield _let_the_host_in(scope)
            yield from rules
        elif items[direction]:
            document.note(found[direction.word], f"has no effect: types does not include {direction.name.capitalize()}")


def subject(spec: Field, document: Document) -> Selects:
    """The pods that the policy selects, in its namespace or in the cluster."""
    found = spec.mapping(None)
    terms: list[Selects] = [selectors.in_namespace(document.namespace) if document.namespace else selectors.IS_POD]
    if "selector" in found:
        terms.append(calico_peers.selector(found["selector"], calico_peers.of_pods))
    if "namespaceSelector" in found and found["namespaceSelector"].text():
        if calico_selector.is_global(found["namespaceSelector"].text()):
            found["namespaceSelector"].fail(
                "global() is allowed only in the namespaceSelector of a source or destination"
            )
        terms.append(calico_peers.namespaces(found["namespaceSelector"]))
    if "serviceAccountSelector" in found and found["serviceAccountSelector"].text():
        terms.append(calico_peers.selector(found["serviceAccountSelector"], calico_peers.of_accounts))
    return AllOf(tuple(terms))


def directions(spec: Field) -> tuple[Direction, ...]:
    """The directions that the policy covers. PolicyError when they cannot be parsed."""
    found = spec.mapping(None)
    items = {one: found[one.word].items() if one.word in found else [] for one in BOTH}
    types = _types(found.get("types"), items)
    return tuple(one for one in BOTH if one in types)


def level(spec: Field, document: Document) -> Level:
    """The level of the policy. PolicyError when it cannot be parsed."""
    return _level(spec.mapping(None), document)


def _level(found: Mapping[str, Field], document: Document) -> Level:
    """Policies of equal order are sorted by name, then namespace and kind."""
    name = found["tier"].text() if "tier" in found else ""
    if name and not _TIER.fullmatch(name):
        found["tier"].fail(f"{quoted(name)} is not the name of a tier")
    tier = _NAMED.get(name or DEFAULT.name) or Tier(UNPLACED, name)
    plain = document.name.removeprefix(f"{tier.name}.")
    return Level(tier, _order(found.get("order")), f"{plain} {document.namespace} {document.kind}")


def _order(field: Field | None) -> float:
    """A policy without an order is last."""
    if field is None:
        return float("inf")
    if not isinstance(field.value, (int, float)) or isinstance(field.value, bool) or field.value != field.value:
        field.fail(f"must be a number, not {quoted(str(field.value))}")
    return float(field.value)


def _types(field: Field | None, items: Mapping[Direction, list[Field]]) -> frozenset[Direction]:
    """Without `types`: the directions that have rules, or ingress when there are none."""
    listed = field.items() if field is not None else []
    if not listed:
        return frozenset(one for one in BOTH if items[one]) or frozenset((Direction.INGRESS,))
    found: set[Direction] = set()
    for item in listed:
        direction = _type(item)
        if direction in found:
            item.fail(f"{quoted(item.text())} is listed twice")
        found.add(direction)
    return frozenset(found)


def _type(field: Field) -> Direction:
    for direction in BOTH:
        if field.text() == direction.name.capitalize():
            return direction
    return field.fail(f"must be Ingress or Egress, not {quoted(field.text())}")


def _direction(items: list[Field], direction: Direction, scope: _Scope) -> Iterator[Rule]:
    """The rules of one direction, with a new level where the action changes, or between plain and http rules."""
    index, last = 0, None
    for item in items:
        for rule in scope.document.collect(partial(_rule, item, direction, scope)):
            kind = rule.action, rule.l7 is None
            if last not in (None, kind):
                index += 1
            last = kind
            yield replace(rule, level=replace(scope.level, index=index))


def _let_the_host_in(scope: _Scope) -> Rule:
    """Before all other rules of the tier."""
    first = Level(scope.level.tier, float("-inf"))
    return Rule(LOCAL_HOST, scope.subject, Direction.INGRESS, peers=(_HOST,), default_deny=False, level=first)


def _rule(item: Field, direction: Direction, scope: _Scope) -> Iterator[Rule]:
    document = scope.document
    found = item.mapping(("action", "ipVersion", *calico_ports.FIELDS, "source", "destination", "http", "metadata"))
    if "metadata" in found:
        found["metadata"].mapping(("annotations",))
    action = document.part(partial(_action, item, found), Action.ALLOW)
    entities = {
        name: found[name].mapping(calico_peers.FIELDS) if name in found else {} for name in ("source", "destination")
    }
    peer, own = ("source", "destination") if direction is Direction.INGRESS else ("destination", "source")
    _check_entities(entities, direction, own)
    version = _version(found)
    calico_ports.check_version(found, version)
    ports = document.part(partial(calico_ports.matches, found, entities["destination"]), None)
    on_ports = direction is Direction.EGRESS
    read = partial(calico_peers.entity_peers, entities[peer], document, version=version, on_ports=on_ports)
    whom: tuple[Peer, ...] | None = document.part(read, ())
    http = _http(found["http"], direction, action, ports, document) if "http" in found else None
    if http is not None and ports is None:
        ports = (PortMatch(frozenset((Protocol.TCP.value,))),)
    if action is None:
        document.note(item, "has no effect: every verdict is logged as a flow")
        return
    yield Rule(
        ref=document.counted_ref(item.at),
        subject=_narrowed(scope, entities[own]),
        direction=direction,
        action=action,
        peers=whom,
        ports=ports,
        l7=HttpRules((http,)) if http is not None else None,
        default_deny=False,
    )


def _action(item: Field, found: Mapping[str, Field]) -> Action | None:
    if "action" not in found:
        item.fail("action is required")
    text = found["action"].text()
    if text not in _ACTIONS:
        found["action"].fail(f"must be Allow, Deny, Log or Pass, not {quoted(text)}")
    return _ACTIONS[text]


def _version(found: Mapping[str, Field]) -> int | None:
    if "ipVersion" not in found:
        return None
    if found["ipVersion"].value not in (4, 6):
        found["ipVersion"].fail("must be 4 or 6")
    return found["ipVersion"].number(4, 6)


def _check_entities(entities: Mapping[str, Mapping[str, Field]], direction: Direction, own: str) -> None:
    """Reject invalid combinations, and what is not supported: source ports, and nets for the pod's own addresses."""
    for name in ("ports", "notPorts"):
        if name in entities["source"] and entities["source"][name].items():
            entities["source"][name].fail("source ports are not supported yet", unsupported=True)
    if "services" in entities[own]:
        word = "a source" if direction is Direction.INGRESS else "a destination"
        entities[own]["services"].fail(f"services can only be {word} in {direction.word} rules")
    if "services" in entities["destination"]:
        for name in ("ports", "notPorts"):
            if name in entities["destination"]:
                entities["destination"][name].fail("cannot specify ports with a service as destination")
    for name in ("nets", "notNets"):
        if name in entities[own] and entities[own][name].items():
            what = f"{name} for the pod's own addresses are not supported yet"
            entities[own][name].fail(what, unsupported=True)


def _narrowed(scope: _Scope, entity: dict[str, Field]) -> Selects:
    """The subject of a rule. The entity on the pod's own side may narrow it."""
    wanted, unwanted = calico_peers.chosen(entity, scope.document), calico_peers.unwanted(entity)
    terms = [scope.subject]
    if wanted is not None:
        terms.append(wanted)
    if unwanted is not None:
        terms.append(Not(unwanted))
    return scope.subject if len(terms) == 1 else AllOf(tuple(terms))


def _http(
    field: Field,
    direction: Direction,
    action: Action | None,
    ports: tuple[PortMatch, ...] | None,
    document: Document,
) -> HttpRule:
    if direction is not Direction.INGRESS or action is not Action.ALLOW:
        field.fail("http is allowed only in ingress rules with action Allow")
    if ports is not None and any(match.protocols != {Protocol.TCP.value} for match in ports):
        field.fail("rules with http must have protocol TCP or no protocol")
    return http_rule(field, document)
