"""Compares requests with flows: an answered request has exactly one request flow and one response flow, one that the
client gave up at most one of each, and no flow names a request that was never sent. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

GIVEN_UP, ANSWERED, WRONG = b"?.x"
"""The client's result of a request: given up on purpose, answered as expected, or answered wrongly."""
EXAMPLES: Final = 3

Outcomes = Mapping[str, bytes]
"""kind → one byte per request, indexed by number."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Counted flows: kind → number → how many of each. `verdicts` counts them by kind and verdict."""

    requests: dict[str, dict[int, int]] = field(default_factory=dict)
    responses: dict[str, dict[int, int]] = field(default_factory=dict)
    verdicts: dict[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the verdict table."""

    kind: str
    sent: int
    answered: int
    given_up: int
    forwarded: int
    dropped: int


def faults(outcomes: Outcomes, seen: Seen, *, answerless: frozenset[str] = frozenset()) -> list[str]:
    """What does not match, in words. `answerless` kinds have no response flow: one flow reports their refusal."""
    found: list[str] = []
    for kind, result in outcomes.items():
        found += _of_kind(f"{kind}: requests", result, seen.requests.get(kind, {}))
        if kind not in answerless:
            found += _of_kind(f"{kind}: responses", result, seen.responses.get(kind, {}))
        if wrong := [number for number, outcome in enumerate(result) if outcome == WRONG]:
            found.append(f"{kind}: {len(wrong)} went wrong, as number {_some(wrong)}")
    for kind in sorted((seen.requests.keys() | seen.responses.keys()) - outcomes.keys()):
        found.append(f"{kind}: flows of traffic that nobody sent")
    return found


def _of_kind(what: str, result: bytes, counts: Mapping[int, int]) -> Iterator[str]:
    missing = [number for number, outcome in enumerate(result) if outcome == ANSWERED and not counts.get(number)]
    doubled = [number for number, count in counts.items() if count > 1]
    unknown = [number for number in counts if number >= len(result)]
    for problem, numbers in (("have no flow", missing), ("have several flows", doubled), ("were never sent", unknown)):
        if numbers:
            yield f"{what}: {len(numbers)} of {len(result)} {problem}, as number {_some(numbers)}"


def _some(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers)[:EXAMPLES])


def lines(outcomes: Outcomes, seen: Seen) -> list[Line]:
    return [
        Line(
            kind,
            len(result),
            result.count(ANSWERED),
            result.count(GIVEN_UP),
            seen.verdicts.get((kind, "FORWARDED"), 0),
            seen.verdicts.get((kind, "DROPPED"), 0),
        )
        for kind, result in sorted(outcomes.items())
    ]


def total(tables: Iterable[Iterable[Line]]) -> list[Line]:
    """The sum of all bursts."""
    sums: dict[str, Line] = {}
    for line in (line for table in tables for line in table):
        old = sums.get(line.kind, Line(line.kind, 0, 0, 0, 0, 0))
        sums[line.kind] = Line(
            line.kind,
            old.sent + line.sent,
            old.answered + line.answered,
            old.given_up + line.given_up,
            old.forwarded + line.forwarded,
            old.dropped + line.dropped,
        )
    return [sums[kind] for kind in sorted(sums)]
