"""Parses the fields around the spec of a Kubernetes object: valid names, and the namespace that its kind allows.

Kubernetes' own label selectors are parsed here too. Their keys have no source: they are labels of pods or namespaces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from l7proxy.errors import PolicyError
from l7proxy.model.labels import K8S, NAMESPACE_LABELS_PREFIX, OWN, Requirement
from l7proxy.policy.lang import selectors
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, Locate, quoted
from l7proxy.policy.lang.options import Options

TOP: Final = ("apiVersion", "kind", "metadata", "spec", "status")
METADATA: Final = (
    "name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation", "generateName", "selfLink",
    "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "finalizers", "ownerReferences",
    "managedFields",
)  # fmt: skip
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")

Spell = Callable[[str], tuple[str, str]]
"""Maps a label key to (source, key) in the label sets of identities."""


def opened(
    root: object, locate: Locate | None, options: Options, *, namespaced: bool, more: tuple[str, ...] = ()
) -> tuple[Document, dict[str, Field]]:
    """The document with its name, and its fields. `more` are allowed fields besides `spec`."""
    faults: list[PolicyError] = []
    found = Field(root, "", faults).mapping((*TOP, *more))
    kind = found["kind"].text()
    metadata = found["metadata"].mapping(METADATA) if "metadata" in found else {}
    name = metadata["name"].text() if "name" in metadata else ""
    if not name:
        Field(None, "metadata.name").fail(f"{kind} must have name")
    if not _NAME.fullmatch(name):
        metadata["name"].fail("must be lower case letters, digits, '-' and '.', at most 253")
    namespace = metadata["namespace"].text() if "namespace" in metadata else ""
    if namespace and not namespaced:
        metadata["namespace"].fail(f"{kind} is cluster-wide and has no namespace")
    if namespace and not _NAMESPACE.fullmatch(namespace):
        metadata["namespace"].fail("must be lower case letters, digits and '-', at most 63")
    space = (namespace or "default") if namespaced else ""
    return Document(kind, space, name, locate, faults=faults, options=options), found


def own(key: str) -> tuple[str, str]:
    """A key in a selector for pods."""
    return OWN, key


def of_namespace(key: str) -> tuple[str, str]:
    """A key in a selector for namespaces, as the identities of pods have it."""
    return K8S, NAMESPACE_LABELS_PREFIX + key


def label_selector(field: Field, spell: Spell) -> list[Requirement]:
    """The requirements of a LabelSelector. `{}` has none and selects everything."""
    for key, place in _keys(field):
        if ":" in key or key.startswith("$"):
            place.fail(f"{quoted(key)} is not a label key")
    return [Requirement(*spell(each.key), each.operator, each.values) for each in selectors.requirements(field)]


def _keys(field: Field) -> Iterator[tuple[str, Field]]:
    found = field.mapping(("matchLabels", "matchExpressions"))
    if "matchLabels" in found:
        yield from found["matchLabels"].mapping(None).items()
    for item in found["matchExpressions"].items() if "matchExpressions" in found else ():
        key = item.mapping(("key", "operator", "values")).get("key")
        if key is not None:
            yield key.text(), key
