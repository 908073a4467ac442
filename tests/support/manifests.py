"""Manifests for tests of sources: written to files, and what came of them in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from l7proxy.model.resources import Change, Delete, Resource, ResourceKey, Synced, Upsert

POLICY = """apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{}]
"""


def pod(name: str, address: str = "10.0.0.5", extra: str = "") -> str:
    return f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIP: {address}}}\n{extra}"


def write(path: Path, text: str) -> None:
    """Writes like a careful editor: whole, by rename, and old enough to be read at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.rename(path)


def names(resources: Mapping[ResourceKey, Resource]) -> list[str]:
    return sorted(str(key) for key in resources)


def said(changes: list[Change]) -> list[str]:
    words = []
    for change in changes:
        match change:
            case Upsert(resource):
                words.append(f"+{resource.key}")
            case Delete(key):
                words.append(f"-{key}")
            case Synced():
                words += ["synced"] * ("synced" not in words)
    return words
