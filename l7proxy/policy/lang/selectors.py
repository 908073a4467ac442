"""Parses label selectors of Cilium documents, and adds their implicit namespace.

A key is `source:key`; without a source it matches any source, and `$name` is `reserved:name`. The subject of a
namespaced policy is always in its namespace. A peer selects pods of the policy's namespace (in a cluster-wide policy
pods of the cluster) unless it names namespaces or reserved labels itself (Cilium semantics).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from l7proxy.model.labels import (
    ANY,
    CLUSTER_KEY,
    K8S,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    RESERVED,
    Operator,
    Requirement,
    Selector,
)
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, quoted

IS_POD: Final = Requirement(K8S, NAMESPACE_KEY, Operator.EXISTS)
"""Matches all pods of the cluster and nothing else: only pods have a namespace label."""

_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SOURCE: Final = re.compile(r"[A-Za-z0-9]+")
_BAD_SOURCE: Final = "label source should be a non empty string with only alphanumeric characters"


def in_namespace(namespace: str) -> Requirement:
    return Requirement(K8S, NAMESPACE_KEY, Operator.IN, (namespace,))


def subject(field: Field, document: Document) -> Selector:
    """`endpointSelector`. In a namespaced document a different namespace in it is ignored."""
    wanted = requirements(field)
    if not document.namespace:
        return selector(wanted)
    kept = [each for each in wanted if not _other_namespace(each, document.namespace)]
    if len(kept) < len(wanted):
        document.note(
            field,
            f"selects only in the namespace of the policy, {quoted(document.namespace)}: the given one is ignored",
        )
    if any(each.source == RESERVED for each in kept):
        document.note(field, "selects nothing: pods have no reserved labels")
    return selector([*kept, in_namespace(document.namespace)])


def peer(field: Field, document: Document, *, for_init: bool = False) -> Selector:
    """An item of fromEndpoints or toEndpoints. `for_init`: the subject is pods without labels yet."""
    wanted = requirements(field)
    if any(each.source == RESERVED for each in wanted):
        return selector(wanted)
    if not any(_speaks_of_namespace(each) for each in wanted):
        if document.namespace:
            return selector([*wanted, in_namespace(document.namespace)])
        return selector(wanted if for_init else [*wanted, IS_POD])
    if any(each.key == CLUSTER_KEY and each.source in (K8S, ANY) for each in wanted):
        return selector(wanted)
    # Cilium adds "of the local cluster". Only one cluster is supported, so this means all pods.
    return selector([*wanted, IS_POD])


def node(field: Field) -> Selector:
    """An item of fromNodes or toNodes: other nodes, never the local host."""
    return selector([*requirements(field), Requirement(RESERVED, "remote-node", Operator.EXISTS)])


def selector(wanted: Iterable[Requirement]) -> Selector:
    """Sorts requirements, so that equivalent selectors are equal."""
    return Selector(
        tuple(sorted(set(wanted), key=lambda each: (each.source, each.key, each.operator.value, each.values)))
    )


def requirements(field: Field) -> list[Requirement]:
    """The requirements of a Kubernetes LabelSelector as written."""
    found = field.mapping(("matchLabels", "matchExpressions"))
    wanted: list[Requirement] = []
    if "matchLabels" in found:
        labels = found["matchLabels"].mapping(None)
        for name in found["matchLabels"].without_value():
            Field(None, found["matchLabels"].key(name)).fail("has no value")
        for key, value in labels.items():
            source, name = label_key(key, value)
            wanted.append(Requirement(source, name, Operator.IN, (label_value(value),)))
    if "matchExpressions" in found:
        wanted += [_expression(item) for item in found["matchExpressions"].items()]
    return wanted


def _expression(field: Field) -> Requirement:
    found = field.mapping(("key", "operator", "values"), required=("key", "operator"))
    source, key = label_key(found["key"].text(), found["key"])
    try:
        operator = Operator(found["operator"].text())
    except ValueError:
        found["operator"].fail(f"must be In, NotIn, Exists or DoesNotExist, not {quoted(found['operator'].text())}")
    values = tuple(sorted({label_value(item) for item in found["values"].items()})) if "values" in found else ()
    if operator in (Operator.IN, Operator.NOT_IN) and not values:
        field.fail(f"values must not be empty for operator {operator.value}")
    if operator in (Operator.EXISTS, Operator.DOES_NOT_EXIST) and values:
        field.fail(f"values must be empty for operator {operator.value}")
    return Requirement(source, key, operator, values)


def label_key(text: str, field: Field) -> tuple[str, str]:
    """(source, key) of `source:key`, `$reserved` or a bare key."""
    if text.startswith("$"):
        source, key = RESERVED, text[1:]
    elif ":" in text:
        source, _, key = text.partition(":")
        if not _SOURCE.fullmatch(source):
            field.fail(_BAD_SOURCE)
    else:
        source, key = ANY, text
    prefix, slash, name = key.rpartition("/")
    if not _NAME.fullmatch(name) or (slash and (len(prefix) > 253 or not _PREFIX.fullmatch(prefix))):
        field.fail(f"{quoted(text)} is not a label key")
    return source, key


def label_value(field: Field) -> str:
    text = field.text()
    if text and not _NAME.fullmatch(text):
        field.fail(f"{quoted(text)} is not a label value: at most 63 letters, digits, '-', '_' and '.'")
    return text


def _is_namespace(each: Requirement) -> bool:
    return each.key == NAMESPACE_KEY and each.source in (K8S, ANY)


def _speaks_of_namespace(each: Requirement) -> bool:
    return _is_namespace(each) or (each.key.startswith(NAMESPACE_LABELS_PREFIX) and each.source in (K8S, ANY))


def _other_namespace(each: Requirement, namespace: str) -> bool:
    return _is_namespace(each) and each.operator is Operator.IN and namespace not in each.values
