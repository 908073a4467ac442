"""Parses policy documents: one document in one language → neutral rules, or a PolicyError that names the field.

A language module does not depend on the others, on identities or on the kernel. API group and kind of a document
determine its language. Known kinds that are not enforced yet are rejected by name, never silently ignored.

cilium                          Cilium's policies; entries: one entry of a policy
selectors, peers, cidrs,        the parts of an entry: peers,
services, ports, icmp, http     ports, and allowed requests;
dns, tls                        fields that are parsed but have no gate yet
admin                           admin, baseline and cluster network policies
calico, calico_…                Calico's policies, with the parts of its rules
kubernetes                      NetworkPolicy; envelope: names and selectors of all Kubernetes objects
refusal                         deny rules in place of a document that cannot be enforced
fields, document, options       values with their paths; the document being parsed; the operator's options
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from l7proxy.errors import PolicyError
from l7proxy.policy.lang import admin, calico, cilium, kubernetes, refusal
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import MAX_FAULTS, Locate, Note
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.policy.rules import Rule

__all__ = [
    "Locate",
    "Note",
    "Options",
    "Read",
    "faults",
    "is_policy",
    "is_staged",
    "known_as",
    "meant",
    "notes",
    "parse",
    "read",
    "refuse",
]

Parse = Callable[[Mapping[Any, Any], Locate | None, Options], tuple[Document, tuple[Rule, ...]]]


@dataclass(frozen=True, slots=True)
class Language:
    """How a kind of document is parsed, and how it is replaced when it cannot be enforced. `parse` None: not supported.

    `staged`: parsed and reported, never enforced. `known_as`: our name for it if another group has the same kind.
    """

    version: str = ""
    parse: Parse | None = None
    namespaced: bool = True
    subject_of: refusal.SubjectOf = refusal.unread_subject
    directions_of: refusal.DirectionsOf = refusal.unread_directions
    level_of: refusal.LevelOf = refusal.in_union
    staged: bool = False
    known_as: str = ""


_CILIUM: Final = Language(
    cilium.VERSION, cilium.parse, subject_of=refusal.cilium_subject, directions_of=refusal.cilium_directions
)
_KUBERNETES: Final = Language(
    kubernetes.VERSION,
    kubernetes.parse,
    subject_of=refusal.kubernetes_subject,
    directions_of=refusal.kubernetes_directions,
)
_CALICO: Final = Language(
    parse=calico.parse,
    subject_of=calico.subject,
    directions_of=calico.directions,
    level_of=calico.level,
    known_as=calico.KNOWN_AS,
)
_CALICO_GLOBAL: Final = replace(_CALICO, namespaced=False, known_as="")
_STAGED: Final = Language(parse=calico.parse_staged, staged=True)
_STAGED_KUBERNETES: Final = Language(parse=calico.parse_staged_kubernetes, staged=True)
_ADMIN: Final = Language(
    parse=admin.parse,
    namespaced=False,
    subject_of=admin.subject,
    directions_of=admin.directions,
    level_of=admin.level,
)

LANGUAGES: Final[Mapping[tuple[str, str], Language]] = {
    (cilium.GROUP, cilium.NAMESPACED): _CILIUM,
    (cilium.GROUP, cilium.CLUSTER_WIDE): replace(_CILIUM, namespaced=False),
    (kubernetes.GROUP, kubernetes.KIND): _KUBERNETES,
    ("extensions", kubernetes.KIND): replace(_KUBERNETES, parse=None),
    **{(admin.GROUP, kind): replace(_ADMIN, version=version) for kind, version in admin.VERSIONS.items()},
    **{
        (group, kind): replace(language, version=version)
        for group, version in calico.VERSIONS.items()
        for kind, language in (
            (calico.NAMESPACED, _CALICO),
            (calico.GLOBAL, _CALICO_GLOBAL),
            (calico.STAGED, _STAGED),
            (calico.STAGED_GLOBAL, replace(_STAGED, namespaced=False)),
            (calico.STAGED_KUBERNETES, _STAGED_KUBERNETES),
        )
    },
}
"""(API group, kind) → language, for all versions."""


_OURS: Final = frozenset(("v1", "policy", *(group for group, _ in LANGUAGES)))
"""API groups of which we know all network policy kinds; `v1` stands for the core group, which has no name."""
_LIKE: Final = 0.85
"""How similar two kinds must be for one to be a typo of the other (difflib's ratio)."""


def is_policy(document: object) -> bool:
    """True for a document of a network policy kind, whether or not we can enforce it."""
    return _language(document) is not None


def is_staged(document: object) -> bool:
    """True for a policy that is reported but never enforced."""
    language = _language(document)
    return language is not None and language.staged


def known_as(document: object) -> str:
    """Our name for a policy's kind: two groups have a NetworkPolicy. "" for other documents."""
    language = _language(document)
    if language is None or not isinstance(document, Mapping):
        return ""
    return language.known_as or str(document["kind"])


def meant(document: object) -> str:
    """The policy kind that another document may be a typo of, as `networking.k8s.io/v1 NetworkPolicy`; or "".

    Only kinds that Kubernetes rejects count as typos: API groups of other products have policies of their own.
    """
    if not isinstance(document, Mapping) or is_policy(document):
        return ""
    group, kind = _group_version(document)[0], document.get("kind")
    if not isinstance(kind, str) or group not in _OURS or kind.endswith("List"):
        return ""
    of_group = {name.lower(): name for known, name in LANGUAGES if known == group}
    near = difflib.get_close_matches(kind.lower(), of_group, 1, _LIKE)
    if near:
        return _written(group, of_group[near[0]])
    elsewhere = next((known for known, name in LANGUAGES if name == kind), None)
    return _written(elsewhere, kind) if elsewhere is not None else ""


def _written(group: str, kind: str) -> str:
    return f"{group}/{LANGUAGES[group, kind].version} {kind}"


def parse(document: Mapping[Any, Any], *, locate: Locate | None = None, options: Options = DEFAULT) -> tuple[Rule, ...]:
    """The rules of one policy document. PolicyError names the field; `unsupported` if it is valid, but not for us."""
    return read(document, locate=locate, options=options).rules


@dataclass(frozen=True, slots=True)
class Read:
    """The rules of a document, and its parts that cannot be enforced: traffic that their rules cover is denied.

    `program` is the size of all its patterns, in RE2 instructions.
    """

    rules: tuple[Rule, ...]
    unenforced: tuple[PolicyError, ...] = ()
    program: int = 0


def read(document: Mapping[Any, Any], *, locate: Locate | None = None, options: Options = DEFAULT) -> Read:
    """Like `parse`. Raises one of several faults: one that makes the document invalid before an unsupported one."""
    found, rules = _read(document, locate, options)
    for fault in sorted(found.faults, key=lambda one: one.unsupported):
        raise fault
    return Read(rules, tuple(found.unenforced), found.program)


def faults(document: Mapping[Any, Any], *, options: Options = DEFAULT) -> tuple[PolicyError, ...]:
    """All faults of a document that one pass finds; () when it is valid.

    At most MAX_FAULTS faults, and as many parts that cannot be enforced; a last item is added if there may be more.
    """
    try:
        found = _read(document, None, options)[0]
    except PolicyError as fault:
        return (fault,)
    shown = (*found.faults, *found.unenforced[:MAX_FAULTS])
    if found.stopped or len(found.unenforced) > MAX_FAULTS:
        return (*shown, PolicyError(f"only the first {len(shown)} errors of this {found.kind} are shown"))
    return shown


def notes(document: Mapping[Any, Any], *, options: Options = DEFAULT) -> tuple[Note, ...]:
    """Notes on a document: what its author may not expect. PolicyError when nothing of it can be parsed."""
    return tuple(dict.fromkeys(_read(document, None, options)[0].notes))


def refuse(document: Mapping[Any, Any], reason: str, *, locate: Locate | None = None) -> tuple[Rule, ...]:
    """Deny rules in place of a document that cannot be enforced. Never raises; () for documents of other kinds."""
    language = _language(document)
    if language is None or language.staged:
        return ()
    return refusal.refuse(
        document,
        reason,
        namespaced=language.namespaced,
        subject_of=language.subject_of,
        directions_of=language.directions_of,
        level_of=language.level_of,
        locate=locate,
        known_as=language.known_as,
    )


def _read(document: Mapping[Any, Any], locate: Locate | None, options: Options) -> tuple[Document, tuple[Rule, ...]]:
    language = _language(document)
    if language is None:
        raise PolicyError("not a policy: unknown apiVersion and kind", at="kind")
    kind, version = document["kind"], _group_version(document)[1]
    if language.parse is None:
        raise PolicyError(f"{document['apiVersion']} {kind} is not supported yet", at="kind", unsupported=True)
    if version != language.version:
        what = f"{kind} is supported in version {language.version} only"
        raise PolicyError(what, at="apiVersion", unsupported=True)
    return language.parse(document, locate, options)


def _language(document: object) -> Language | None:
    if not isinstance(document, Mapping):
        return None
    kind = document.get("kind")
    return LANGUAGES.get((_group_version(document)[0], kind)) if isinstance(kind, str) else None


def _group_version(document: Mapping[Any, Any]) -> tuple[str, str]:
    text = document.get("apiVersion")
    group, _, version = text.partition("/") if isinstance(text, str) else ("", "", "")
    return group, version
