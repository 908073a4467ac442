"""Parses `toServices`: Services by name or by labels. `policy.references` resolves their backends."""

from __future__ import annotations

from collections.abc import Iterator

from l7proxy.policy.lang import selectors
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field
from l7proxy.policy.rules import ServicePeer


def services(item: Field, document: Document) -> Iterator[ServicePeer]:
    """References by name, by labels, or both. Without a namespace they match any namespace (Cilium semantics)."""
    found = item.mapping(("k8sService", "k8sServiceSelector"))
    if not found:
        item.fail("one of k8sService or k8sServiceSelector is required")
    reach = document.options.cidr_reach
    if "k8sService" in found:
        by_name = found["k8sService"].mapping(("serviceName", "namespace"))
        name = by_name["serviceName"].text() if "serviceName" in by_name else ""
        if not name:
            found["k8sService"].fail("serviceName is required")
        namespace = _namespace(by_name)
        if not namespace:
            document.note(
                found["k8sService"], "has no namespace, so it matches Services of this name in all namespaces"
            )
        if (namespace, name) == ("default", "kubernetes"):
            document.note(found["k8sService"], "does not match an API server on a node: use the entity kube-apiserver")
        yield ServicePeer(namespace, name, reach=reach)
    if "k8sServiceSelector" in found:
        by_labels = found["k8sServiceSelector"].mapping(("selector", "namespace"), required=("selector",))
        document.selects(by_labels["selector"])
        selector = selectors.selector(selectors.requirements(by_labels["selector"]))
        yield ServicePeer(_namespace(by_labels), selector=selector, reach=reach)


def _namespace(found: dict[str, Field]) -> str:
    return found["namespace"].text() if "namespace" in found else ""
