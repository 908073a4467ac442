"""Parses CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2), with Cilium's semantics and messages.

`spec` and all of `specs` are enforced, like separate policies with one name. An absent list is "any", an empty one
"none", `[{}]` an entry that matches nothing; any entry puts its direction into default deny unless `enableDefaultDeny`
says otherwise. Policies for nodes are parsed and have no effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final
from unicodedata import category

from l7proxy.model.labels import EVERYTHING, Selector
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.lang import envelope, selectors
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.entries import Scope, rules_of
from l7proxy.policy.lang.fields import Field, Locate
from l7proxy.policy.lang.http import numbered
from l7proxy.policy.lang.options import Options
from l7proxy.policy.rules import Rule

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


def parse(root: Mapping[object, object], locate: Locate | None, options: Options) -> tuple[Document, tuple[Rule, ...]]:
    """The document with its notes and faults, and its rules, which are valid only without faults."""
    namespaced = root.get("kind") == NAMESPACED
    document, found = envelope.opened(root, locate, options, namespaced=namespaced, more=("specs",))
    specs = [found["spec"]] if "spec" in found else []
    specs += found["specs"].items() if "specs" in found else []
    if not specs:
        Field(None, "spec").fail("spec or specs must be provided")
    rules = [rule for spec in specs for rule in document.collect(partial(_spec, spec, document))]
    return document, tuple(numbered(rules))


def _spec(spec: Field, document: Document) -> Iterator[Rule]:
    found = spec.mapping((*_SPEC, *_LISTS))
    lists = {name: found[name].items() for name in _LISTS if name in found}
    if not any(lists.values()):
        spec.fail("rule must have at least one of Ingress, IngressDeny, Egress, EgressDeny")
    document.part(partial(_bookkeeping, found), None)
    log = document.part(partial(_log, found["log"]), "") if "log" in found else ""
    subject = document.part(partial(_subject, spec, found, document), EVERYTHING)
    scope = Scope(document, subject, _default_deny(found, lists, document), log)
    for name, items in lists.items():
        direction, action = _LISTS[name]
        for item in items:
            yield from document.collect(partial(rules_of, item, direction, action, scope))


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
    document.unenforceable(found["nodeSelector"], "has no effect: host policies are not supported")
    return None


def _default_deny(
    found: dict[str, Field], lists: dict[str, list[Field]], document: Document
) -> Mapping[Direction, bool]:
    """Whether entries of a direction set default deny: unless enableDefaultDeny is false. No effect without entries."""
    said = found["enableDefaultDeny"].mapping(("ingress", "egress")) if "enableDefaultDeny" in found else {}
    result = {Direction.INGRESS: True, Direction.EGRESS: True}
    for direction in result:
        if direction.word not in said:
            continue
        field = said[direction.word]
        result[direction] = field.flag() or not document.options.non_default_deny
        if field.flag() and not any(items for name, items in lists.items() if _LISTS[name][0] is direction):
            document.note(field, f"has no effect: there are no {direction.word} entries")
        if result[direction] != field.flag():
            document.note(field, "has no effect: policies without default deny are disabled")
    return result


def _bookkeeping(found: dict[str, Field]) -> None:
    """Fields that do not affect verdicts: only their types are checked."""
    if "description" in found:
        found["description"].text()
    for label in found["labels"].items() if "labels" in found else ():
        if not isinstance(label.value, str):
            for part in label.mapping(("key", "value", "source")).values():
                part.text()


def _log(field: Field) -> str:
    """The text that is added to the flows that this policy decides."""
    found = field.mapping(("value",))
    text = found["value"].text() if "value" in found else ""
    if len(text) > MAX_LOG or any(category(char).startswith("C") for char in text):
        found["value"].fail(f"must be at most {MAX_LOG} printable characters")
    return text
