"""A short way to write Calico policies."""

from __future__ import annotations

from typing import Any

from tests.unit.policy.town import load

Document = dict[str, Any]


def calico(
    spec: str, name: str = "p", space: str = "x", *, kind: str = "", version: str = "projectcalico.org/v3"
) -> Document:
    """A policy whose spec is in flow style, without its braces; without a namespace it is a global one."""
    (body,) = load(f"{{{spec}}}") or [{}]
    metadata = {"name": name} | ({"namespace": space} if space else {})
    kind = kind or ("NetworkPolicy" if space else "GlobalNetworkPolicy")
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": body}
