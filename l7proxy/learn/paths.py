"""Turns the paths of requests into patterns: segment by segment, everything escaped, whole-string as Cilium matches.

A segment that looks like an identifier (a number, a UUID, a hash) stands for any segment, and so does each of more than
`limit` different segments at one place. What a pattern allows beyond what was seen is said by `Template.note`.

`[^/?]+`, not `[^/]+`: rules are matched against the path with its query, and `/users/[^/]+/public` would match
`/users/1?x=/public`, whose path is `/users/1`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from l7proxy.errors import PeerError
from l7proxy.policy.match.pattern import MAX_PATTERN, METACHARACTERS, PatternSet
from l7proxy.wire.path import PathRules, normalise

ANY_SEGMENT: Final = "[^/?]+"
ANY_QUERY: Final = r"(\?.*)?"
MAX_SEGMENTS: Final = 64
"""Segments of a path; longer ones are not learned."""
SHOWN: Final = 3
COUNTED: Final = 1000
"""Different values of a segment that are counted; there may be more."""
MAX_PLACES: Final = 100_000
"""Segments in one tree: what a pod sends must not use up memory."""
MAX_EXACT: Final = 1000
"""Different paths that are kept as they are, in case that no pattern may stand for them."""
MAX_REFUSED: Final = 10_000
_MISSING: Final = re.compile(r"header ([!#$%&'*+.^_`|~0-9A-Za-z-]+) missing")
"""In the reason of a refusal."""
_IDENTIFIER: Final = re.compile(
    r"""
      \d+                                                           # a number
    | [0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}          # a UUID
    | (?=[^0-9]*\d)[0-9a-fA-F]{8,}                                  # a hash, or another number in hex
    | \d{4}-\d\d-\d\d(?:T[\d:.+Z-]+)?                               # a date
    | (?=[^0-9]*\d)(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9_=-]{20,}        # a key: long, with letters and digits
    """,
    re.VERBOSE,
)
_LENIENT: Final = PathRules(allow_matrix=True, redirect_escaped_slashes=False)


def quoted(text: str) -> str:
    """A pattern that matches exactly this text."""
    return "".join(f"\\{char}" if char in METACHARACTERS else char for char in text)


def is_identifier(segment: str) -> bool:
    return bool(_IDENTIFIER.fullmatch(segment))


def readable(path: str) -> str:
    """The path with its query, in normal form. ValueError says why it cannot be learned."""
    if path == "*":
        return path
    try:
        found = normalise(path.encode("ascii"), _LENIENT).decode("ascii")
    except UnicodeEncodeError as error:
        raise ValueError("not ASCII") from error
    except PeerError as error:
        raise ValueError(str(error)) from error
    if found.partition("?")[0].count("/") > MAX_SEGMENTS:
        raise ValueError(f"more than {MAX_SEGMENTS} segments")
    if len(quoted(found.partition("?")[0])) + len(ANY_QUERY) > MAX_PATTERN:
        raise ValueError("too long for a pattern")
    return found


@dataclass(frozen=True, slots=True)
class Template:
    """A pattern, how many requests it stands for, and what it allows beyond them ("" if nothing).

    `headers`: those without which equal requests were refused. `refused`: equal requests that were refused for another
    reason, which flows do not show.
    """

    pattern: str
    count: int
    note: str = ""
    headers: tuple[str, ...] = ()
    refused: int = 0


@dataclass
class Refused:
    """Requests of one method that were refused: path without query → how many, and the headers that were missing in
    all of them."""

    paths: dict[str, tuple[int, frozenset[str]]] = field(default_factory=dict)

    def add(self, path: str, reason: str) -> None:
        """`path`: as `readable` returns it. Of more than MAX_REFUSED paths, the first ones are kept."""
        plain, names = path.partition("?")[0], frozenset(_MISSING.findall(reason))
        if plain in self.paths:
            count, before = self.paths[plain]
            self.paths[plain] = count + 1, names & before
        elif len(self.paths) < MAX_REFUSED:
            self.paths[plain] = 1, names

    def among(self, pattern: str) -> dict[str, tuple[int, frozenset[str]]]:
        """Those that a pattern would allow."""
        if not self.paths:
            return {}
        test = PatternSet([pattern])
        return {path: found for path, found in self.paths.items() if test.find(path.encode())}


@dataclass
class _Place:
    """A place in the tree of segments: the requests that end here, with and without a query, and what comes after.

    `crowded`: more segments were seen here than the limit, so all of them are `other`. `values` are what `other` stands
    for. The tree does not depend on the order in which paths are added.
    """

    count: int = 0
    queries: int = 0
    literal: dict[str, _Place] = field(default_factory=dict)
    other: _Place | None = None
    values: set[str] = field(default_factory=set)
    crowded: bool = False

    def next(self, segment: str, limit: int) -> _Place:
        if segment and (self.crowded or is_identifier(segment)):
            return self._elsewhere(segment)
        place = self.literal.setdefault(segment, _Place())
        self.unite_beyond(limit)
        return self._elsewhere(segment) if segment and self.crowded else place

    def unite_beyond(self, limit: int) -> None:
        """Make a place with too many segments crowded. An empty segment (a slash at the end) stays as it is."""
        self.crowded = self.crowded or len(self.literal) - ("" in self.literal) > limit
        for segment in [one for one in self.literal if one] if self.crowded else ():
            self._elsewhere(segment).take(self.literal.pop(segment))

    def _elsewhere(self, segment: str) -> _Place:
        if self.other is None:
            self.other = _Place()
        if len(self.values) < COUNTED:
            self.values.add(segment)
        return self.other

    def take(self, other: _Place) -> None:
        """Add what another place has."""
        self.count += other.count
        self.queries += other.queries
        self.crowded = self.crowded or other.crowded
        self.values |= other.values
        for segment, place in other.literal.items():
            self.literal.setdefault(segment, _Place()).take(place)
        if other.other is not None:
            self.other = self.other or _Place()
            self.other.take(other.other)

    def settle(self, limit: int) -> None:
        """Apply the limit everywhere: places that were united may hold more segments than it."""
        self.unite_beyond(limit)
        for place in (*self.literal.values(), *([self.other] if self.other else [])):
            place.settle(limit)

    def walk(self, before: str, notes: tuple[str, ...]) -> Iterator[tuple[str, _Place, tuple[str, ...]]]:
        if self.count:
            yield before, self, notes
        for segment in sorted(self.literal):
            yield from self.literal[segment].walk(f"{before}/{quoted(segment)}", notes)
        if self.other is not None:
            more = "more than " if len(self.values) >= COUNTED else ""
            sample = ", ".join(sorted(self.values)[:SHOWN])
            note = f"{ANY_SEGMENT} for {more}{len(self.values)} seen: {sample}"
            yield from self.other.walk(f"{before}/{ANY_SEGMENT}", (*notes, note))


class PathTree:
    """The paths of requests with one method from one peer.

    `limit`: different segments at one place that are kept; with more of them any segment is allowed. `any_query`: allow
    any query on every path, since flows do not show it by default; else only on paths that were seen with one.
    """

    def __init__(self, limit: int, *, any_query: bool) -> None:
        self._limit = limit
        self._any_query = any_query
        self._root = _Place()
        self._places = 0
        self._asterisk = 0
        self._exact: dict[str, _Place] = {}
        self.left_out = 0
        """Requests that are not in the tree, because it would be too large."""

    def add(self, path: str) -> None:
        """`path`: as `readable` returns it."""
        if path == "*":
            self._asterisk += 1
            return
        plain, query, _ = path.partition("?")
        segments = plain.split("/")[1:]
        if self._places >= MAX_PLACES:
            self.left_out += 1
            return
        place = self._root
        for segment in segments:
            place = place.next(segment, self._limit)
        self._places += 0 if place.count else len(segments)
        places = [place]
        if plain in self._exact or len(self._exact) < MAX_EXACT:
            places.append(self._exact.setdefault(plain, _Place()))
        for one in places:
            one.count += 1
            one.queries += bool(query)

    def templates(self, most: int, refused: Refused | None = None) -> tuple[list[Template], int]:
        """At most `most` patterns, those of most requests; and the number of requests that they leave out.

        A pattern that would allow what was refused is replaced by the paths that were seen.
        """
        refused = refused or Refused()
        self._root.settle(self._limit)
        found = [one for each in self._root.walk("", ()) for one in self._kept(self._template(*each), refused)]
        if self._asterisk:
            found.append(Template(quoted("*"), self._asterisk))
        found.sort(key=lambda one: (-one.count, one.pattern))
        left_out = self.left_out + self._sum() - sum(one.count for one in found[:most])
        return sorted(found[:most], key=lambda one: one.pattern), left_out

    def _sum(self) -> int:
        return self._asterisk + sum(place.count for _, place, _ in self._root.walk("", ()))

    def _kept(self, template: Template, refused: Refused) -> Iterator[Template]:
        met = refused.among(template.pattern)
        if not met:
            yield template
        elif ANY_SEGMENT in template.pattern:
            test = PatternSet([template.pattern])
            for path, place in sorted(self._exact.items()):
                if test.find(path.encode()):
                    yield from self._kept(self._template(quoted(path), place, ()), refused)
        else:
            (count, names), *_ = met.values()
            yield replace(template, headers=tuple(sorted(names)), refused=0 if names else count)

    def _template(self, pattern: str, place: _Place, notes: tuple[str, ...]) -> Template:
        if self._any_query or place.queries:
            pattern += ANY_QUERY
            notes = (*notes, f"{place.queries} with a query") if place.queries else notes
        return Template(pattern, place.count, "; ".join(notes))
