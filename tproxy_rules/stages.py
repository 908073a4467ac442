"""Packs stages into as few as their conflicts allow: stages that cover different packets can be joined.

First-match languages give one stage for each run of equal actions, and each stage costs lookups: a hundred exceptions
among a hundred allow rules would cost a hundred. But the order of two entries matters only for packets that both cover.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from tproxy_rules.desired import Entry, Stage, Verdict
from tproxy_rules.validate import ANY_PROTOCOL

Cell = tuple[int, int, int]
"""Protocol, first and last port."""
EVERYONE: Final = -1
"""Pseudo-peer of entries with `any_peer`."""
SOMEONE: Final = -2
"""Pseudo-peer recorded for every entry."""
MAX_WORK: Final = 1_000_000
"""Maximum comparisons; more would delay other updates."""


def pack_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The fewest equivalent stages; equal inputs give equal results.

    Entries are placed in order of precedence, each in the earliest possible stage. An overlapping entry placed before
    limits this: the new one shares its stage if it is no stronger, else it comes later.
    """
    if len(stages) < 2:
        return tuple(stages)
    least: dict[Verdict, dict[tuple[int, Cell], int]] = {verdict: defaultdict(int) for verdict in Verdict}
    cells = {_cell(entry) for stage in stages for entry in stage}
    if len(cells) ** 2 > MAX_WORK:
        return tuple(stages)
    overlaps = {one: [other for other in cells if _overlap(one, other)] for one in cells}
    work = ((len(entry.peers) + 1) * (len(overlaps[_cell(entry)]) + len(least)) for stage in stages for entry in stage)
    if sum(work) > MAX_WORK:
        return tuple(stages)
    layers: dict[int, set[Entry]] = defaultdict(set)
    for entry in _as_they_win(stages):
        cell, before = _cell(entry), least[entry.verdict]
        layer = max((before[peer, other] for peer in _asked(entry) for other in overlaps[cell]), default=0)
        layers[layer].add(entry)
        for verdict, floor in least.items():
            needed = layer + (verdict > entry.verdict)
            for peer in _peers(entry):
                floor[peer, cell] = max(floor[peer, cell], needed)
    return tuple(tuple(sorted(layers[number])) for number in sorted(layers))


def _as_they_win(stages: Iterable[Stage]) -> Iterator[Entry]:
    for stage in stages:
        yield from sorted(stage, key=lambda entry: -entry.verdict)


def _asked(entry: Entry) -> tuple[int, ...]:
    """The peers under which an overlapping entry may be recorded."""
    return (SOMEONE,) if entry.any_peer else (EVERYONE, *entry.peers)


def _peers(entry: Entry) -> tuple[int, ...]:
    """The peers under which this entry is recorded."""
    return (SOMEONE, EVERYONE) if entry.any_peer else (SOMEONE, *entry.peers)


def _cell(entry: Entry) -> Cell:
    return entry.protocol, entry.first, entry.last


def _overlap(one: Cell, other: Cell) -> bool:
    alike = one[0] == other[0] or ANY_PROTOCOL in (one[0], other[0])
    return alike and one[1] <= other[2] and other[1] <= one[2]
