"""Decodes one object, a plain mapping as YAML or the Kubernetes API gives it, into a resource. Pure.

A policy is parsed here, once: its resource holds the rules, or the error that refuses them. An object that cannot be
decoded is a Fault. `key` names the object; without it the fault is `unattributed`. A faulty policy leaves a
`placeholder`, which the cluster state turns into rules that refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from l7proxy.errors import PolicyError, SourceError
from l7proxy.model.resources import CidrGroup, PolicyDocument, Resource, ResourceKey, SourceLocation
from l7proxy.policy import lang
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.sources import objects

NOT_READ: Final = " is not used by l7proxy: ignored"
"""End of the note about a kind that l7proxy does not use."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An error, the object it belongs to (if known), and a placeholder for an object without a valid version."""

    error: SourceError
    key: ResourceKey | None = None
    placeholder: PolicyDocument | CidrGroup | None = None

    @property
    def unattributed(self) -> bool:
        return self.key is None


@dataclass(frozen=True, slots=True)
class Decoded:
    """What one version of a file, or of an API object, holds. `notes`: remarks that are not errors."""

    resources: tuple[Resource, ...] = ()
    faults: tuple[Fault, ...] = ()
    notes: tuple[SourceError, ...] = ()


def decoded(parts: list[Resource | Fault | SourceError]) -> Decoded:
    """The results of `decode`, sorted by what they are."""
    return Decoded(
        tuple(part for part in parts if not isinstance(part, Fault | SourceError)),
        tuple(part for part in parts if isinstance(part, Fault)),
        tuple(part for part in parts if isinstance(part, SourceError)),
    )


def decode(
    value: Any,
    origin: SourceLocation = objects.NOWHERE,
    lines: Callable[[], Mapping[str, int]] = dict,
    *,
    options: Options = DEFAULT,
) -> Resource | Fault | SourceError:
    """The resource, or the fault, or a note (SourceError) about a kind that is not used. `lines`: field → line."""
    if not isinstance(value, dict):
        return Fault(
            SourceError("a manifest must be a mapping with kind and metadata", file=origin.file, line=origin.line)
        )
    try:
        resource = objects.read(value, origin, lines, options)
    except SourceError as error:
        policy = objects.placeholder(value, origin, lines(), error) if lang.is_policy(value) else None
        return Fault(error, objects.key_of(value), policy or objects.unread(value, origin))
    if resource is None:
        return _unused(value, origin, lines)
    return _if_valid(resource) if isinstance(resource, PolicyDocument) else resource


def _unused(
    value: Mapping[str, Any], origin: SourceLocation, lines: Callable[[], Mapping[str, int]]
) -> Fault | SourceError:
    """A note about a kind that is not used; a fault if its name looks like a typo of a policy kind."""
    kind, meant = f"{value.get('apiVersion')} {value.get('kind')}", lang.meant(value)
    if not meant:
        return SourceError(kind + NOT_READ, file=origin.file, line=origin.line, field="kind")
    what, line = f"{kind} does not exist; did you mean {meant}?", lines().get("kind", origin.line)
    version, _, name = meant.partition(" ")
    slip = SourceError(what, file=origin.file, line=line, field="kind")
    return Fault(slip, objects.key_of({**value, "apiVersion": version, "kind": name}))


def _if_valid(policy: PolicyDocument) -> PolicyDocument | Fault:
    """An invalid policy is a fault, since an API server would reject it.

    A policy that is valid but not supported is not a fault: it is kept, and what it selects is refused.
    """
    error = policy.parsed
    if not isinstance(error, PolicyError) or error.unsupported:
        return policy
    file, line = policy.locate(error.at)
    return Fault(SourceError(error.message, file=file, line=line, field=error.at), policy.key, policy)
