"""Policy languages: one document in one language → neutral rules, or a PolicyError that names the field.

A language knows nothing of the others, of identities or of kernels. Which language a document is in, its API group and
kind tell. Kinds that we know to be policies but do not enforce yet are refused by name: never silently ignored.

selectors, peers, ports, http   the parts of Cilium's language
cilium                          the whole of it
kubernetes                      NetworkPolicy; envelope: names and selectors as all of Kubernetes has them
refusal                         what stands in for a document that we cannot honour
fields, document, options       reading values with their paths; the document being read; what may be switched
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from l7proxy.errors import PolicyError
from l7proxy.policy.lang import cilium, kubernetes, refusal
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Locate, Note
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.policy.rules import Rule

__all__ = ["Locate", "Note", "Options", "faults", "is_policy", "notes", "parse", "refuse"]

Parse = Callable[[Mapping[Any, Any], Locate | None, Options], tuple[Document, tuple[Rule, ...]]]


@dataclass(frozen=True, slots=True)
class Language:
    """How a kind of document is read, if it is, and how it is refused."""

    version: str = ""
    parse: Parse | None = None
    namespaced: bool = True
    subject_of: refusal.SubjectOf = refusal.unread_subject
    directions_of: refusal.DirectionsOf = refusal.unread_directions


_CILIUM: Final = Language(
    cilium.VERSION, cilium.parse, subject_of=refusal.cilium_subject, directions_of=refusal.cilium_directions
)
_CILIUM_CLUSTER_WIDE: Final = Language(
    cilium.VERSION,
    cilium.parse,
    namespaced=False,
    subject_of=refusal.cilium_subject,
    directions_of=refusal.cilium_directions,
)
_KUBERNETES: Final = Language(
    kubernetes.VERSION,
    kubernetes.parse,
    subject_of=refusal.kubernetes_subject,
    directions_of=refusal.kubernetes_directions,
)
_UNREAD: Final = Language()
_UNREAD_CLUSTER_WIDE: Final = Language(namespaced=False)

LANGUAGES: Final[Mapping[tuple[str, str], Language]] = {
    (cilium.GROUP, cilium.NAMESPACED): _CILIUM,
    (cilium.GROUP, cilium.CLUSTER_WIDE): _CILIUM_CLUSTER_WIDE,
    (kubernetes.GROUP, kubernetes.KIND): _KUBERNETES,
    ("extensions", kubernetes.KIND): replace(_KUBERNETES, parse=None),
    ("projectcalico.org", "NetworkPolicy"): _UNREAD,
    ("projectcalico.org", "GlobalNetworkPolicy"): _UNREAD_CLUSTER_WIDE,
    ("crd.projectcalico.org", "NetworkPolicy"): _UNREAD,
    ("crd.projectcalico.org", "GlobalNetworkPolicy"): _UNREAD_CLUSTER_WIDE,
    ("policy.networking.k8s.io", "AdminNetworkPolicy"): _UNREAD_CLUSTER_WIDE,
    ("policy.networking.k8s.io", "BaselineAdminNetworkPolicy"): _UNREAD_CLUSTER_WIDE,
    ("policy.networking.k8s.io", "ClusterNetworkPolicy"): _UNREAD_CLUSTER_WIDE,
}
"""(API group, kind) → language, in whatever version."""


def is_policy(document: object) -> bool:
    """True for a document of a kind that decides who may talk to whom, whether or not we can honour it."""
    return _language(document) is not None


def parse(document: Mapping[Any, Any], *, locate: Locate | None = None, options: Options = DEFAULT) -> tuple[Rule, ...]:
    """The rules of one policy document. PolicyError names the field; `unsupported` if it is only we who cannot.

    A rule with a `refusal` stands for a part that we cannot enforce: what it covers is refused, the rest is enforced.
    """
    read, rules = _read(document, locate, options)
    for fault in sorted(read.faults, key=lambda one: one.unsupported):
        raise fault
    return rules


def faults(document: Mapping[Any, Any], *, options: Options = DEFAULT) -> tuple[PolicyError, ...]:
    """All that is wrong with a document, as far as it can be told at once: at most one per rule item. () when good."""
    try:
        read = _read(document, None, options)[0]
    except PolicyError as fault:
        return (fault,)
    return (*read.faults, *read.unenforced)


def notes(document: Mapping[Any, Any], *, options: Options = DEFAULT) -> tuple[Note, ...]:
    """Remarks on a document: what its author may not expect. PolicyError when nothing of it can be read."""
    return tuple(dict.fromkeys(_read(document, None, options)[0].notes))


def refuse(document: Mapping[Any, Any], reason: str, *, locate: Locate | None = None) -> tuple[Rule, ...]:
    """The rules that stand in for a document we cannot honour. Never raises; no rules for what is no policy."""
    language = _language(document)
    if language is None:
        return ()
    return refusal.refuse(
        document,
        reason,
        namespaced=language.namespaced,
        subject_of=language.subject_of,
        directions_of=language.directions_of,
        locate=locate,
    )


def _read(document: Mapping[Any, Any], locate: Locate | None, options: Options) -> tuple[Document, tuple[Rule, ...]]:
    language = _language(document)
    if language is None:
        raise PolicyError("not a policy: apiVersion and kind name none that we know", at="kind")
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
