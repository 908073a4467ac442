"""The status of each policy: accepted with its rules, or refused with the reason (law 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from l7proxy.cluster import audit
from l7proxy.cluster.secrets import names_secret
from l7proxy.errors import PolicyError
from l7proxy.model.resources import PolicyDocument
from l7proxy.model.shorten import shortened
from l7proxy.policy import lang
from l7proxy.policy.lang.http import foreign_secrets
from l7proxy.policy.references import References, without_tier
from l7proxy.policy.rules import Rule

MAX_SHOWN: Final = 10
"""Maximum number of unenforced parts of one document that its reason names; the rest are counted."""


class PolicyPhase(Enum):
    """State of a document. REFUSED: valid but not supported. INVALID: wrong. Both deny what they select.

    PARTLY: some of its rules are not supported; traffic that these cover is refused, the rest is enforced.
    STAGED: for preview only, never enforced.
    """

    ACCEPTED = "accepted"
    PARTLY = "partly"
    STAGED = "staged"
    REFUSED = "refused"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """One document and its rules, without secret values.

    `audit`: traffic that it would refuse passes and is reported. `program`: total RE2 instructions of its patterns.
    `uid`, `generation`: which version of which object of the API server it is; empty and 0 in manifests without them.
    """

    kind: str
    namespace: str
    name: str
    state: PolicyPhase
    reason: str = ""
    file: str = ""
    line: int = 0
    rules: tuple[Rule, ...] = ()
    audit: bool = False
    needs_secrets: bool = False
    program: int = 0
    uid: str = ""
    generation: int = 0
    api_version: str = ""


def status_of(document: PolicyDocument, *, secrets_namespace: str = "") -> PolicyStatus:
    """Never fails: a document that cannot be enforced gets rules that refuse, unless it is in audit mode."""
    state = replace(_status_of(document, secrets_namespace), **_version(document.document))
    wanted, fault = audit.of_document(document.document)
    if fault:
        return replace(state, reason="; ".join(part for part in (state.reason, fault) if part))
    return replace(state, audit=True, rules=audit.audited(state.rules)) if wanted else state


def _version(document: Mapping[str, Any]) -> dict[str, Any]:
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    uid, generation, group = metadata.get("uid"), metadata.get("generation"), document.get("apiVersion")
    return {
        "uid": uid if isinstance(uid, str) else "",
        "generation": generation if isinstance(generation, int) else 0,
        "api_version": group if isinstance(group, str) else "",
    }


def _status_of(document: PolicyDocument, secrets_namespace: str) -> PolicyStatus:
    found: lang.Read | PolicyError = document.parsed
    if isinstance(found, PolicyError):
        state = PolicyPhase.REFUSED if found.unsupported else PolicyPhase.INVALID
        return _refused(document, state, str(found), found.at)
    foreign = foreign_secrets(found.rules, secrets_namespace)
    if foreign is not None:
        return _refused(document, PolicyPhase.REFUSED, str(foreign), foreign.at)
    return PolicyStatus(
        document.kind,
        document.namespace,
        document.name,
        _state(document, found),
        reason=_together(found.unenforced),
        file=document.origin.file,
        line=document.origin.line,
        rules=found.rules,
        needs_secrets=any(names_secret(item) for rule in found.rules for item in rule.http),
        program=found.program,
    )


def _state(document: PolicyDocument, found: lang.Read) -> PolicyPhase:
    if lang.is_staged(document.document):
        return PolicyPhase.STAGED
    return PolicyPhase.PARTLY if found.unenforced else PolicyPhase.ACCEPTED


def placed(state: PolicyStatus, references: References) -> PolicyStatus:
    """The status, but refused if the policy's tier does not exist: its rules would have no order."""
    for ref, why in without_tier(state.rules, references):
        return replace(state, state=PolicyPhase.REFUSED, reason=why, file=ref.file, line=ref.line)
    return state


def _together(parts: tuple[PolicyError, ...]) -> str:
    return shortened([str(part) for part in parts], MAX_SHOWN, "; ", "; ")


def _refused(document: PolicyDocument, state: PolicyPhase, reason: str, at: str) -> PolicyStatus:
    file, line = document.locate(at)
    rules = lang.refuse(document.document, reason, locate=document.locate)
    return PolicyStatus(document.kind, document.namespace, document.name, state, reason, file, line, rules)
