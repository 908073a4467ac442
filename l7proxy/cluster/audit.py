"""Audit mode: traffic that policy would refuse passes and is reported as AUDIT. Per policy, namespace or node.

Enabled by the annotation `l7proxy.io/audit: "true"` on a policy or a Namespace (for its endpoints), or by the agent's
setting. Requests that are not valid HTTP, and spoofed or conflicting addresses, are still refused: they do not depend
on policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from l7proxy.model.resources import Namespace, Problem
from l7proxy.policy.rules import Rule

ANNOTATION: Final = "l7proxy.io/audit"
_SAID: Final = {"true": True, "false": False}


def of_document(document: Mapping[str, Any]) -> tuple[bool, str]:
    """(whether the policy is in audit mode, error in the annotation). With an error the policy is enforced."""
    metadata = document.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, Mapping) else None
    value = annotations.get(ANNOTATION, "false") if isinstance(annotations, Mapping) else "false"
    if isinstance(value, str) and value in _SAID:
        return _SAID[value], ""
    return False, f'annotation {ANNOTATION}: {str(value)[:40]!r} must be "true" or "false": the policy is enforced'


def of_namespace(namespace: Namespace) -> tuple[bool, Problem | None]:
    value = namespace.annotations.get(ANNOTATION, "false")
    if value in _SAID:
        return _SAID[value], None
    what = f'{value[:40]!r} must be "true" or "false": policies are enforced in namespace {namespace.name}'
    origin = namespace.origin
    return False, Problem(origin.file, origin.line, f"metadata.annotations.{ANNOTATION}", what)


def audited(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(replace(rule, audit=True) for rule in rules)
