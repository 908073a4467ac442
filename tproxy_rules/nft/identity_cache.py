"""Caches identities by prefix between desired states: there may be many prefixes, of which few change at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import compress, count
from operator import is_not
from typing import Final

from tproxy_rules.desired import Prefixes
from tproxy_rules.digest import identities_digest
from tproxy_rules.networks import Identities, split
from tproxy_rules.validate import examined_identities

FEW: Final = 256
"""If the range of changed prefixes is at most this long, only these are parsed."""
Nets = Mapping[int, Identities]


@dataclass(frozen=True, slots=True)
class IdentityPage:
    """Parsed prefixes: their problem or "", their canonical form, and the split form if there is no problem."""

    given: Prefixes
    problem: str
    canonical: Prefixes
    nets: Nets


def page(given: Prefixes) -> IdentityPage:
    problem, canonical = examined_identities(given)
    return IdentityPage(given, problem, canonical, {} if problem else split(canonical))


class IdentityCache:
    """Caches the last result of `page`. Results are always equal to those of `page` (tested as a property)."""

    def __init__(self) -> None:
        self._last = page(())
        self._digest: tuple[IdentityPage, bytes] | None = None

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
        found = self(given)
        if self._digest is None or self._digest[0] is not found:
            self._digest = found, identities_digest(found.canonical)
        return self._digest[1]


def _following(last: IdentityPage, given: Prefixes) -> IdentityPage | None:
    """The page derived from the last one if only some host prefixes were added or removed; else None."""
    before, most = last.canonical, min(len(last.canonical), len(given))
    start = next(compress(count(), map(is_not, before, given)), most)
    alike = next(compress(count(), map(is_not, reversed(before), reversed(given))), most)
    end = min(alike, most - start)  # a repeated value may match from both ends
    gone, come = before[start : len(before) - end], given[start : len(given) - end]
    around = given[max(start - 1, 0) : len(given) - max(end - 1, 0)]
    if last.problem or len(gone) + len(come) > FEW or examined_identities(around) != ("", around):
        return None
    left, joined = split(gone), split(come)
    if any(net.ranges or net.default for nets in (left, joined) for net in nets.values()):
        return None
    return IdentityPage(given, "", given, {of: _moved(net, left[of], joined[of]) for of, net in last.nets.items()})


def _moved(net: Identities, left: Identities, joined: Identities) -> Identities:
    hosts = {**net.hosts, **joined.hosts}
    for address in left.hosts.keys() - joined.hosts.keys():
        del hosts[address]
    return replace(net, hosts=hosts) if left.hosts or joined.hosts else net
