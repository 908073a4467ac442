"""Caches identities by prefix between desired states: there may be many prefixes, of which few change at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tproxy_rules.desired import Prefixes, VersionedPrefixes
from tproxy_rules.digest import identities_sum, sum_digest
from tproxy_rules.networks import Identities, is_host, split, wide_of, with_hosts
from tproxy_rules.validate import examined_identities

Nets = Mapping[int, Identities]


@dataclass(frozen=True, slots=True)
class IdentityPage:
    """Examined prefixes: their problem or "", their canonical form, and, if there is no problem, the split form and the
    sum that their digest is made of."""

    given: Prefixes
    problem: str
    canonical: Prefixes
    wide: Mapping[str, int]
    """Those that hold more than one address."""
    nets: Nets
    total: int


def page(given: Prefixes) -> IdentityPage:
    problem, canonical = examined_identities(given)
    if problem:
        return IdentityPage(given, problem, canonical, {}, {}, 0)
    wide = wide_of(canonical)
    return IdentityPage(given, "", canonical, wide, split(canonical, wide), identities_sum(canonical))


class IdentityCache:
    """Caches the last result of `page`; of another version of the same prefixes only the changes are looked at.

    Results are always equal to those of `page` (tested as a property)."""

    def __init__(self) -> None:
        self._last = page(())

    def __call__(self, given: Prefixes) -> IdentityPage:
        last = self._last
        if given is not last.given and given is not last.canonical:
            self._last = _following(last, given) or page(given)
        return self._last

    def examined(self, given: Prefixes) -> tuple[str, Prefixes]:
        found = self(given)
        return found.problem, found.canonical

    def split(self, given: Prefixes) -> Nets:
        return self(given).nets

    def digest(self, given: Prefixes) -> bytes:
        return sum_digest(self(given).total)


def _following(last: IdentityPage, given: Prefixes) -> IdentityPage | None:
    """The page of another version; None if it has to be made from the whole."""
    before = last.canonical
    if last.problem or not isinstance(given, VersionedPrefixes) or not isinstance(before, VersionedPrefixes):
        return None
    changed = given.changed_since(before)
    if changed is None:
        return None
    moved = sorted(one for one in changed if given.get(one) != before.get(one))
    come = tuple((one, number) for one in moved if (number := given.get(one)) is not None)
    gone = tuple((one, number) for one in moved if (number := before.get(one)) is not None)
    if examined_identities(come) != ("", come):
        return None
    total = last.total + identities_sum(come) - identities_sum(gone)
    if all(map(is_host, moved)):
        return IdentityPage(given, "", given, last.wide, with_hosts(last.nets, given), total)
    wide = {one: number for one in {*last.wide, *moved} if not is_host(one) and (number := given.get(one)) is not None}
    return IdentityPage(given, "", given, wide, split(given, wide), total)
