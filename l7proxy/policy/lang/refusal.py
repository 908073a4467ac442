"""Makes deny rules in place of a document that cannot be enforced, for the endpoints that it selects.

Undecided means closed: a policy that we cannot parse may deny anything. Readable parts narrow the denial (selector,
directions); an unreadable selector widens it to the namespace (for a cluster-wide document to every pod). Ingress from
the local host stays allowed for kubelet's probes, as in Cilium. `refuse` never raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from l7proxy.errors import PolicyError
from l7proxy.model.labels import ANY, OWN, Requirement, Selector, Selects
from l7proxy.model.verdict import BOTH, Action, Direction
from l7proxy.policy.lang import selectors
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, Locate, is_unicode
from l7proxy.policy.rules import EVERYONE_BUT_THE_HOST, Rule
from l7proxy.policy.tiers import FRONT, UNION, Level

SubjectOf = Callable[[Field, Document], Selects | None]
"""The subject of a spec. None: it selects no pods. Raises PolicyError when it cannot be parsed."""
DirectionsOf = Callable[[Field], tuple[Direction, ...]]
LevelOf = Callable[[Field, Document], Level]
"""The level of a spec. Raises PolicyError when it cannot be parsed."""


def refuse(
    root: Mapping[object, object],
    reason: str,
    *,
    namespaced: bool,
    subject_of: SubjectOf,
    directions_of: DirectionsOf,
    level_of: LevelOf,
    locate: Locate | None,
    known_as: str = "",
) -> tuple[Rule, ...]:
    """Deny rules in place of the document."""
    document = _document(root, namespaced=namespaced, locate=locate, known_as=known_as)
    specs = _specs(root)
    directions = _directions(specs, directions_of)
    rules: list[Rule] = []
    for spec in specs:
        try:
            subject = subject_of(spec, document)
        except PolicyError:
            subject = _whole(document)
        if subject is not None:
            level = _level(spec, document, level_of)
            rules += [_deny(document, spec.at, subject, direction, reason, level) for direction in directions]
    return tuple(dict.fromkeys(rules))


def _level(spec: Field, document: Document, level_of: LevelOf) -> Level:
    try:
        return level_of(spec, document)
    except PolicyError:
        return FRONT


def in_union(spec: Field, document: Document) -> Level:
    """The level of Cilium's and Kubernetes' policies."""
    return UNION


def cilium_subject(spec: Field, document: Document) -> Selector | None:
    found = spec.mapping(None)
    if "endpointSelector" not in found and "nodeSelector" in found and not document.namespace:
        return None
    if "endpointSelector" not in found:
        spec.fail("endpointSelector is missing")
    return selectors.subject(found["endpointSelector"], document)


def cilium_directions(spec: Field) -> tuple[Direction, ...]:
    found = spec.mapping(None)
    return tuple(direction for direction in BOTH if any(found.get(f"{direction.word}{deny}") for deny in ("", "Deny")))


def kubernetes_subject(spec: Field, document: Document) -> Selector:
    """`podSelector`; absent it is `{}`, every pod of the namespace. Its keys have no source: they are pods' labels."""
    found = spec.mapping(None)
    wanted = selectors.requirements(found["podSelector"]) if "podSelector" in found else []
    if any(each.source != ANY for each in wanted):
        spec.fail("label keys of Kubernetes selectors must not have a source")
    own = [Requirement(OWN, each.key, each.operator, each.values) for each in wanted]
    return selectors.selector([*own, *_whole(document).requirements])


def kubernetes_directions(spec: Field) -> tuple[Direction, ...]:
    """policyTypes; without it always Ingress, and Egress if there are egress rules (networking.k8s.io/v1)."""
    found = spec.mapping(None)
    if "policyTypes" not in found:
        return BOTH if "egress" in found else (Direction.INGRESS,)
    types = {item.text() for item in found["policyTypes"].items()}
    if not types or not types <= {"Ingress", "Egress"}:
        return BOTH
    return tuple(direction for direction in BOTH if direction.name.capitalize() in types)


def unread_subject(spec: Field, document: Document) -> Selector:
    """For languages whose selectors are not supported yet."""
    return spec.fail("its selector is not supported yet")


def unread_directions(spec: Field) -> tuple[Direction, ...]:
    return BOTH


def _document(root: Mapping[object, object], *, namespaced: bool, locate: Locate | None, known_as: str) -> Document:
    metadata = root.get("metadata")
    found: Mapping[object, object] = metadata if isinstance(metadata, Mapping) else {}

    def text(name: str, otherwise: str) -> str:
        value = found.get(name)
        return value if isinstance(value, str) and value and is_unicode(value) else otherwise

    kind = root.get("kind")
    return Document(
        known_as or (kind if isinstance(kind, str) else ""),
        text("namespace", "default") if namespaced else "",
        text("name", "(no name)"),
        locate,
    )


def _specs(root: Mapping[object, object]) -> list[Field]:
    specs = [Field(root["spec"], "spec")] if root.get("spec") is not None else []
    if root.get("specs") is not None:
        try:
            specs += Field(root["specs"], "specs").items()
        except PolicyError:
            specs.append(Field(None, "specs"))
    return specs or [Field(None, "spec")]


def _directions(specs: list[Field], directions_of: DirectionsOf) -> tuple[Direction, ...]:
    """The directions of any spec; both when a spec cannot be parsed or names none."""
    try:
        mentioned = [directions_of(spec) or BOTH for spec in specs]
    except PolicyError:
        return BOTH
    return tuple(direction for direction in BOTH if any(direction in each for each in mentioned))


def _whole(document: Document) -> Selector:
    if document.namespace:
        return Selector((selectors.in_namespace(document.namespace),))
    return Selector((selectors.IS_POD,))


def _deny(document: Document, at: str, subject: Selects, direction: Direction, reason: str, level: Level) -> Rule:
    peers = EVERYONE_BUT_THE_HOST[direction]
    why = reason or "it cannot be enforced"
    return Rule(document.ref(at), subject, direction, Action.DENY, peers, refusal=why, level=level)
