"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2), with Cilium's semantics and messages.

`spec` and every one of `specs` count, as if they were policies of their own under one name. Each toPorts and each icmps
item becomes one rule, an item without either one as well. Emptiness: a missing list is "any", an empty one "none",
`[{}]` an entry that matches nothing; any entry puts its direction into default deny unless `enableDefaultDeny` says
otherwise.

What we do not enforce is refused by name, and only that: an allow rule that only widens (toFQDNs, rules.dns) admits
nobody; one that asks for more than to be let through (TLS, server names, a listener, authentication) denies what it
covers, since another rule may allow the same and would not ask for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from unicodedata import category

from l7proxy.model.labels import RESERVED, Selector
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.lang import dns, envelope, icmp, peers, selectors, tls
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, Locate, quoted
from l7proxy.policy.lang.http import http_rule
from l7proxy.policy.lang.options import Options
from l7proxy.policy.lang.ports import ports
from l7proxy.policy.rules import AnyPeer, EveryPeer, HttpRule, Peer, PortMatch, Rule

GROUP: Final = "cilium.io"
VERSION: Final = "v2"
NAMESPACED: Final = "CiliumNetworkPolicy"
CLUSTER_WIDE: Final = "CiliumClusterwideNetworkPolicy"
MAX_LOG: Final = 32

_SPEC: Final = ("endpointSelector", "nodeSelector", "enableDefaultDeny", "labels", "description", "log")
_LISTS: Final[Mapping[str, tuple[Direction, Action]]] = {
    "ingress": (Direction.INGRESS, Action.ALLOW),
    "ingressDeny": (Direction.INGRESS, Action.DENY),
    "egress": (Direction.EGRESS, Action.ALLOW),
    "egressDeny": (Direction.EGRESS, Action.DENY),
}
_AUTHENTICATION: Final = ("disabled", "required", "test-always-fail")
_REFUSED: Final = "is not supported yet: what its rule covers is refused"


def parse(root: Mapping[object, object], locate: Locate | None, options: Options) -> tuple[Document, tuple[Rule, ...]]:
    """The document with its notes and faults, and its rules, which only count when there are no faults."""
    namespaced = root.get("kind") == NAMESPACED
    document, found = envelope.opened(root, locate, options, namespaced=namespaced, more=("specs",))
    specs = [found["spec"]] if "spec" in found else []
    specs += found["specs"].items() if "specs" in found else []
    if not specs:
        Field(None, "spec").fail("spec or specs must be provided")
    rules = [rule for spec in specs for rule in document.collect(partial(_spec, spec, document))]
    return document, tuple(_numbered(rules))


@dataclass(frozen=True, slots=True)
class _Scope:
    """What every item of one spec shares. `subject` None: nodes, which we do not police."""

    document: Document
    subject: Selector | None
    default_deny: Mapping[Direction, bool]
    log: str

    @property
    def for_init(self) -> bool:
        found = self.subject.requirements if self.subject else ()
        return any(each.source == RESERVED and each.key == "init" for each in found)


@dataclass(frozen=True, slots=True)
class _Item:
    """One entry of ingress, egress, ingressDeny or egressDeny.

    `who` are its peers, and `covered` those that it may mean besides. `refusal`: why none of them may pass.
    """

    scope: _Scope
    direction: Direction
    action: Action
    who: tuple[Peer, ...] | None
    covered: tuple[Peer, ...] | None
    refusal: str = ""

    @property
    def document(self) -> Document:
        return self.scope.document

    def rule(
        self,
        at: Field,
        what: tuple[PortMatch, ...] | None = None,
        *,
        http: tuple[HttpRule, ...] = (),
        refusal: str = "",
        nobody: bool = False,
    ) -> Iterator[Rule]:
        scope, refusal = self.scope, self.refusal or refusal
        if scope.subject is None:
            return
        yield Rule(
            ref=scope.document.ref(at.at),
            subject=scope.subject,
            direction=self.direction,
            action=Action.DENY if refusal else self.action,
            peers=_but_the_host(self.covered, self.direction) if refusal else () if nobody else self.who,
            ports=what,
            http=None if refusal or nobody else http or None,
            default_deny=scope.default_deny[self.direction],
            refusal=refusal,
            log=scope.log,
        )


def _spec(spec: Field, document: Document) -> Iterator[Rule]:
    found = spec.mapping((*_SPEC, *_LISTS))
    lists = {name: found[name].items() for name in _LISTS if name in found}
    if not any(lists.values()):
        spec.fail("rule must have at least one of Ingress, IngressDeny, Egress, EgressDeny")
    _bookkeeping(found)
    log = _log(found["log"]) if "log" in found else ""
    scope = _Scope(document, _subject(spec, found, document), _default_deny(found, lists, document), log)
    for name, items in lists.items():
        direction, action = _LISTS[name]
        for item in items:
            yield from document.collect(partial(_item, item, direction, action, scope))


def _subject(spec: Field, found: dict[str, Field], document: Document) -> Selector | None:
    both = [name for name in ("endpointSelector", "nodeSelector") if name in found]
    if not both:
        spec.fail("rule must have one of EndpointSelector or NodeSelector")
    if len(both) > 1:
        spec.fail("rule cannot have both EndpointSelector and NodeSelector")
    if both == ["endpointSelector"]:
        return selectors.subject(found["endpointSelector"], document)
    if document.namespace:
        found["nodeSelector"].fail("rule cannot have NodeSelector")
    selectors.requirements(found["nodeSelector"])
    document.unenforceable(found["nodeSelector"], "has no effect: the host firewall is off")
    return None


def _default_deny(
    found: dict[str, Field], lists: dict[str, list[Field]], document: Document
) -> Mapping[Direction, bool]:
    """Each direction that has an entry, unless the author says otherwise. Without an entry it has no effect."""
    said = found["enableDefaultDeny"].mapping(("ingress", "egress")) if "enableDefaultDeny" in found else {}
    result = {Direction.INGRESS: True, Direction.EGRESS: True}
    for direction in result:
        if direction.word not in said:
            continue
        field = said[direction.word]
        result[direction] = field.flag() or not document.options.non_default_deny
        if field.flag() and not any(items for name, items in lists.items() if _LISTS[name][0] is direction):
            document.note(field, f"has no effect: there is no {direction.word} entry")
        if result[direction] != field.flag():
            document.note(field, "has no effect: policies without default deny are switched off")
    return result


def _bookkeeping(found: dict[str, Field]) -> None:
    """Fields without meaning to the verdict: only their shape is looked at."""
    if "description" in found:
        found["description"].text()
    for label in found["labels"].items() if "labels" in found else ():
        if not isinstance(label.value, str):
            for part in label.mapping(("key", "value", "source")).values():
                part.text()


def _log(field: Field) -> str:
    """What the flows that this policy decides shall say."""
    found = field.mapping(("value",))
    text = found["value"].text() if "value" in found else ""
    if len(text) > MAX_LOG or any(category(char).startswith("C") for char in text):
        found["value"].fail(f"must be at most {MAX_LOG} printable characters")
    return text


def _item(place: Field, direction: Direction, action: Action, scope: _Scope) -> Iterator[Rule]:
    """The rules of one entry: one for each toPorts or icmps item, or one for the whole."""
    deny = action is Action.DENY
    fields = (*peers.names(direction, deny=deny), "icmps", "toPorts", *(() if deny else ("authentication",)))
    found = place.mapping(fields)
    icmps = found["icmps"].items() if "icmps" in found else []
    cells = found["toPorts"].items() if "toPorts" in found else []
    if icmps:
        _check_icmps(place, found["icmps"], cells, scope.document)
    document = scope.document
    who = peers.peers(place, found, direction, document, deny=deny, for_init=scope.for_init)
    for name in place.without_value():
        document.note(Field(None, place.key(name)), "has no value, which is as if it were absent; an empty list is []")
    if who is None and not cells and not icmps:
        who = ()  # `{}` matches nothing
    refusal = _authentication(found["authentication"], document) if "authentication" in found else ""
    item = _Item(scope, direction, action, who, who if peers.all_known(found) else peers.WORLD, refusal)
    if not cells and not icmps:
        yield from item.rule(place)
    for cell in icmps:
        yield from item.rule(cell, icmp.messages(cell))
    for cell in cells:
        yield from _cell(cell, item)


def _check_icmps(place: Field, icmps: Field, cells: list[Field], document: Document) -> None:
    if not document.options.icmp:
        what = 'ICMP rules can only be applied when the "enable-icmp-rules" flag is set'
        icmps.fail(what, unsupported=True)
    if cells:
        place.fail("the ICMPs block may only be present without ToPorts. Define a separate rule to use ToPorts")


def _authentication(field: Field, document: Document) -> str:
    """Why nothing may pass that must be authenticated first. Nobody needs to be where it is `disabled`."""
    found = field.mapping(("mode",))
    if "mode" not in found:
        field.fail("mode is required")
    mode = found["mode"].text()
    if mode not in _AUTHENTICATION:
        found["mode"].fail(f"must be {', '.join(_AUTHENTICATION)}, not {quoted(mode)}")
    return "" if mode == "disabled" else document.unenforceable(field, _REFUSED)


def _cell(cell: Field, item: _Item) -> Iterator[Rule]:
    """One toPorts item."""
    document = item.document
    if item.action is Action.DENY:
        found = cell.mapping(("ports",))
        yield from item.rule(cell, ports(found["ports"], document, l7="") if "ports" in found else ())
        return
    found = cell.mapping(("ports", "rules", *tls.FIELDS))
    http, queries = _l7(found["rules"], item) if "rules" in found else ((), None)
    l7 = "http" if http else "dns" if queries else ""
    what = ports(found["ports"], document, l7=l7) if "ports" in found else ()
    closed = list(tls.unenforceable(cell, found, document, item.direction, l7=bool(l7)))
    if queries:
        if not what:
            cell.fail("port 53 must be specified for DNS rules")
        document.unenforceable(queries, "is not supported yet: it lets no query pass")
    refusal = "; ".join([document.unenforceable(field, _REFUSED) for field in closed])
    yield from item.rule(cell, what, http=http, refusal=refusal, nobody=queries is not None)


def _l7(field: Field, item: _Item) -> tuple[tuple[HttpRule, ...], Field | None]:
    """The HTTP rules and where DNS rules stand. Without an item there are none, so nothing is redirected."""
    found = field.mapping(("http", "dns"), later=("kafka", "l7proto", "l7"))
    http = found["http"].items() if "http" in found else []
    queries = found["dns"].items() if "dns" in found else []
    if item.scope.subject is None and found and item.direction is Direction.INGRESS:
        field.fail("L7 policy is not supported on host ingress yet")
    if item.scope.subject is None and http:
        field.fail("L7 protocol HTTP is not supported on host egress yet")
    if len(found) > 1:
        field.fail("multiple L7 protocol rule types specified in single rule")
    if queries and item.direction is Direction.INGRESS:
        found["dns"].fail("DNS rules are not allowed on ingress")
    dns.check_rules(queries)
    return tuple(http_rule(each, item.document) for each in http), found["dns"] if queries else None


def _but_the_host(who: tuple[Peer, ...] | None, direction: Direction) -> tuple[Peer, ...] | None:
    """Those who are refused: the way in from the local host stays open, for kubelet's probes."""
    if direction is Direction.EGRESS:
        return who
    return (EveryPeer(() if who is None else (AnyPeer(who),), none_of=peers.HOST),)


def _numbered(rules: list[Rule]) -> Iterator[Rule]:
    """HTTP rules counted through the document from 1: the number that denials name."""
    count = 0
    for rule in rules:
        if rule.http is None:
            yield rule
            continue
        numbered = enumerate(rule.http, count + 1)
        yield replace(rule, http=tuple(replace(each, number=number, log=rule.log) for number, each in numbered))
        count += len(rule.http)
