"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2), with Cilium's semantics and messages.

`spec` and every one of `specs` count, as if they were policies of their own under one name. Each toPorts item becomes
one rule, an item without ports one as well. Emptiness: a missing list is "any", an empty one "none", `[{}]` an entry
that matches nothing; any entry puts its direction into default deny unless `enableDefaultDeny` says otherwise.
What we do not enforce is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from l7proxy.model.labels import RESERVED, Selector
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.lang import peers, selectors
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, Locate
from l7proxy.policy.lang.http import http_rule
from l7proxy.policy.lang.options import Options
from l7proxy.policy.lang.ports import ports
from l7proxy.policy.rules import HttpRule, Peer, PortMatch, Rule

GROUP: Final = "cilium.io"
VERSION: Final = "v2"
NAMESPACED: Final = "CiliumNetworkPolicy"
CLUSTER_WIDE: Final = "CiliumClusterwideNetworkPolicy"

_METADATA: Final = (
    "name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation", "generateName", "selfLink",
    "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "finalizers", "ownerReferences",
    "managedFields",
)  # fmt: skip
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SPEC: Final = ("endpointSelector", "nodeSelector", "enableDefaultDeny", "labels", "description")
_LISTS: Final[Mapping[str, tuple[Direction, Action]]] = {
    "ingress": (Direction.INGRESS, Action.ALLOW),
    "ingressDeny": (Direction.INGRESS, Action.DENY),
    "egress": (Direction.EGRESS, Action.ALLOW),
    "egressDeny": (Direction.EGRESS, Action.DENY),
}


def parse(root: Mapping[object, object], locate: Locate | None, options: Options) -> tuple[Document, tuple[Rule, ...]]:
    """The document with its notes and faults, and its rules, which only count when there are no faults."""
    found = Field(root, "").mapping(("apiVersion", "kind", "metadata", "spec", "specs", "status"))
    document = _document(found, locate)
    document.options = options
    specs = [found["spec"]] if "spec" in found else []
    specs += found["specs"].items() if "specs" in found else []
    if not specs:
        Field(None, "spec").fail("spec or specs must be provided")
    rules = [rule for spec in specs for rule in document.collect(partial(_spec, spec, document))]
    return document, tuple(_numbered(rules))


def _document(found: dict[str, Field], locate: Locate | None) -> Document:
    kind = found["kind"].text()
    metadata = found["metadata"].mapping(_METADATA) if "metadata" in found else {}
    name = metadata["name"].text() if "name" in metadata else ""
    if not name:
        Field(None, "metadata.name").fail(f"{kind} must have name")
    if not _NAME.fullmatch(name):
        metadata["name"].fail("must be lower case letters, digits, '-' and '.', at most 253")
    namespace = metadata["namespace"].text() if "namespace" in metadata else ""
    if kind == CLUSTER_WIDE:
        if namespace:
            metadata["namespace"].fail(f"{kind} is cluster-wide and has no namespace")
        return Document(kind, "", name, locate)
    if namespace and not _NAMESPACE.fullmatch(namespace):
        metadata["namespace"].fail("must be lower case letters, digits and '-', at most 63")
    return Document(kind, namespace or "default", name, locate)


@dataclass(frozen=True, slots=True)
class _Scope:
    """What every item of one spec shares."""

    document: Document
    subject: Selector
    default_deny: Mapping[Direction, bool]

    @property
    def for_init(self) -> bool:
        return any(each.source == RESERVED and each.key == "init" for each in self.subject.requirements)


def _spec(spec: Field, document: Document) -> Iterator[Rule]:
    found = spec.mapping((*_SPEC, *_LISTS), later=("log",))
    lists = {name: found[name].items() for name in _LISTS if name in found}
    if not any(lists.values()):
        spec.fail("rule must have at least one of Ingress, IngressDeny, Egress, EgressDeny")
    _bookkeeping(found)
    scope = _Scope(document, _subject(spec, found, document), _default_deny(found, lists, document))
    for name, items in lists.items():
        direction, action = _LISTS[name]
        for item in items:
            yield from document.collect(partial(_item, item, direction, action, scope))


def _subject(spec: Field, found: dict[str, Field], document: Document) -> Selector:
    both = [name for name in ("endpointSelector", "nodeSelector") if name in found]
    if not both:
        spec.fail("rule must have one of EndpointSelector or NodeSelector")
    if len(both) > 1:
        spec.fail("rule cannot have both EndpointSelector and NodeSelector")
    if both == ["nodeSelector"]:
        if document.namespace:
            found["nodeSelector"].fail("rule cannot have NodeSelector")
        found["nodeSelector"].fail("nodeSelector is not supported yet", unsupported=True)
    return selectors.subject(found["endpointSelector"], document)


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
        result[direction] = field.flag()
        if field.flag() and not any(items for name, items in lists.items() if _LISTS[name][0] is direction):
            document.note(field, f"has no effect: there is no {direction.word} entry")
    return result


def _bookkeeping(found: dict[str, Field]) -> None:
    """Fields without meaning to the verdict: only their shape is looked at."""
    if "description" in found:
        found["description"].text()
    for label in found["labels"].items() if "labels" in found else ():
        if not isinstance(label.value, str):
            for part in label.mapping(("key", "value", "source")).values():
                part.text()


def _item(item: Field, direction: Direction, action: Action, scope: _Scope) -> Iterator[Rule]:
    """One entry of ingress, egress, ingressDeny or egressDeny."""
    names = peers.NAMES[direction]
    found = item.mapping((*names.read, names.gone, "icmps", "toPorts"), later=_later(direction, action))
    if "icmps" in found:
        if "toPorts" in found:
            item.fail("the ICMPs block may only be present without ToPorts. Define a separate rule to use ToPorts")
        found["icmps"].fail("icmps is not supported yet", unsupported=True)
    if names.gone in found and found[names.gone].items():
        found[names.gone].fail(f"{names.gone} was removed from Cilium; use matchExpressions in the selectors instead")
    who = peers.peers(item, found, names, scope.document, for_init=scope.for_init)
    for name in item.without_value():
        at = Field(None, item.key(name))
        scope.document.note(at, "has no value, which is as if it were absent; an empty list is []")
    cells = found["toPorts"].items() if "toPorts" in found else []
    if not cells:
        yield _rule(item, direction, action, scope, () if who is None else who)  # `{}` matches nothing
    for cell in cells:
        yield _port_rule(cell, direction, action, scope, who)


def _later(direction: Direction, action: Action) -> tuple[str, ...]:
    """Fields of an item that Cilium knows there and we do not enforce."""
    later = peers.NAMES[direction].later
    if action is Action.DENY:
        return later
    return (*later, "authentication", *(("toFQDNs",) if direction is Direction.EGRESS else ()))


def _port_rule(cell: Field, direction: Direction, action: Action, scope: _Scope, who: tuple[Peer, ...] | None) -> Rule:
    if action is Action.DENY:
        found = cell.mapping(("ports",))
        http: tuple[HttpRule, ...] = ()
    else:
        found = cell.mapping(("ports", "rules"), later=("terminatingTLS", "originatingTLS", "serverNames", "listener"))
        http = _l7(found["rules"], direction, scope.document) if "rules" in found else ()
    what = ports(found["ports"], l7=bool(http)) if "ports" in found else ()
    return _rule(cell, direction, action, scope, who, what, http)


def _l7(field: Field, direction: Direction, document: Document) -> tuple[HttpRule, ...]:
    """`rules`. Without an item in it there is no L7 rule at all, so nothing is redirected."""
    found = field.mapping(("http", "dns"), later=("kafka", "l7proto", "l7"))
    http = found["http"].items() if "http" in found else []
    if "dns" in found and found["dns"].items():
        if http:
            field.fail("multiple L7 protocol rule types specified in single rule")
        if direction is Direction.INGRESS:
            found["dns"].fail("DNS rules are not allowed on ingress")
        found["dns"].fail("rules.dns is not supported yet", unsupported=True)
    return tuple(http_rule(item, document) for item in http)


def _rule(
    place: Field,
    direction: Direction,
    action: Action,
    scope: _Scope,
    who: tuple[Peer, ...] | None,
    what: tuple[PortMatch, ...] | None = None,
    http: tuple[HttpRule, ...] = (),
) -> Rule:
    return Rule(
        ref=scope.document.ref(place.at),
        subject=scope.subject,
        direction=direction,
        action=action,
        peers=who,
        ports=what,
        http=http or None,
        default_deny=scope.default_deny[direction],
    )


def _numbered(rules: list[Rule]) -> Iterator[Rule]:
    """HTTP rules counted through the document from 1: the number that denials name."""
    count = 0
    for rule in rules:
        if rule.http is None:
            yield rule
            continue
        yield replace(rule, http=tuple(replace(each, number=count + place) for place, each in enumerate(rule.http, 1)))
        count += len(rule.http)
