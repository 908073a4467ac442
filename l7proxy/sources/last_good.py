"""Keeps the last good version of each object whose newest version cannot be decoded. Pure, and for every source.

A version is the content of one file, or of one API object. If an error cannot be assigned to one object, no object of
the version before is removed until the error is fixed. A faulty policy that never had a good version gets a
placeholder. This is the only place of the sources that depends on earlier inputs (law 4).
"""

from __future__ import annotations

from collections.abc import Mapping

from l7proxy.model.resources import Resource, ResourceKey
from l7proxy.sources.decode import Decoded, Fault


def settle(
    version: Decoded, before: Mapping[ResourceKey, Resource]
) -> tuple[dict[ResourceKey, Resource], dict[ResourceKey, Resource]]:
    """(good resources, placeholders) of a version; `before`: the good resources of the version before."""
    good: dict[ResourceKey, Resource] = {}
    placeholders: dict[ResourceKey, Resource] = {}
    for resource in version.resources:
        good.setdefault(resource.key, resource)
    for fault in version.faults:
        kept = _meant(fault, before, good)
        if kept is not None:
            good.setdefault(kept, before[kept])
        elif fault.placeholder is not None and fault.placeholder.key not in good:
            placeholders.setdefault(fault.placeholder.key, fault.placeholder)
    if any(fault.unattributed for fault in version.faults):
        for key, resource in before.items():
            good.setdefault(key, resource)
    return good, placeholders


def _meant(
    fault: Fault, before: Mapping[ResourceKey, Resource], good: Mapping[ResourceKey, Resource]
) -> ResourceKey | None:
    """The last good object that a fault belongs to. A policy with an unreadable name counts as one that is missing."""
    named = fault.key or (fault.placeholder.key if fault.placeholder else None)
    if named is None or named in before:
        return named
    if not fault.unattributed:
        return None
    return next((key for key in sorted(before) if key.kind == named.kind and key not in good), None)
