"""Composed predicates over labels: selectors with `&&`, `||`, `!` and parentheses.

The leaves are requirements (`model.labels`) and substrings. Values: equal when they have equal terms in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from l7proxy.model.labels import LabelSet, Requirement, Selector, Selects


@dataclass(frozen=True, slots=True)
class AllOf:
    """Conjunction. Without terms it matches everything."""

    terms: tuple[Selects, ...] = ()

    def matches(self, labels: LabelSet) -> bool:
        return all(term.matches(labels) for term in self.terms)

    def __str__(self) -> str:
        return " && ".join(_grouped(term) for term in self.terms) or "everything"


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Disjunction. Without terms it matches nothing."""

    terms: tuple[Selects, ...] = ()

    def matches(self, labels: LabelSet) -> bool:
        return any(term.matches(labels) for term in self.terms)

    def __str__(self) -> str:
        return " || ".join(_grouped(term) for term in self.terms) or "nothing"


@dataclass(frozen=True, slots=True)
class Not:
    """Negation."""

    term: Selects

    def matches(self, labels: LabelSet) -> bool:
        return not self.term.matches(labels)

    def __str__(self) -> str:
        return f"!{_grouped(self.term)}"


class Part(Enum):
    """Where the text must be found in the value."""

    ANYWHERE = "contains"
    START = "starts with"
    END = "ends with"


@dataclass(frozen=True, slots=True)
class Holds:
    """True when the value of the label contains `text`. False when the label is absent."""

    source: str
    key: str
    part: Part
    text: str

    def matches(self, labels: LabelSet) -> bool:
        return any(self._in(value) for value in labels.values(self.source, self.key))

    def _in(self, value: str) -> bool:
        match self.part:
            case Part.ANYWHERE:
                return self.text in value
            case Part.START:
                return value.startswith(self.text)
            case Part.END:
                return value.endswith(self.text)

    def __str__(self) -> str:
        return f"{self.source}:{self.key} {self.part.value} {self.text!r}"


def keys(selects: Selects) -> Iterator[tuple[str, str]]:
    """(source, key) of every label that the predicate reads."""
    match selects:
        case Selector(requirements):
            yield from ((each.source, each.key) for each in requirements)
        case Requirement(source, key) | Holds(source, key):
            yield source, key
        case AllOf(terms) | AnyOf(terms):
            for term in terms:
                yield from keys(term)
        case Not(term):
            yield from keys(term)
        case _:
            pass


def _grouped(term: Selects) -> str:
    several = isinstance(term, (AllOf, AnyOf)) and len(term.terms) > 1
    return f"({term})" if several else str(term)
