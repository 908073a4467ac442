"""Stages in as few as their entries' conflicts need: what two stages say of different packets may stand in one.

Rules of first-match languages make a stage for each run of one action, and the kernel asks stage by stage: a hundred
exceptions between a hundred allowances would be as many lookups. But the order of two entries only matters where a
packet is covered by both.
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
"""The peer of entries for everyone."""
SOMEONE: Final = -2
"""A peer of every entry."""
MAX_WORK: Final = 1_000_000
"""Comparisons: more would hold up what else is to be enforced."""


def pack_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The fewest stages that say the same of every packet; equal for equal stages.

    In the order in which entries win, each goes as far forward as those before it which it overlaps let it: beside
    them if it is no stronger, else behind them.
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
            for peer in _told(entry):
                floor[peer, cell] = max(floor[peer, cell], needed)
    return tuple(tuple(sorted(layers[number])) for number in sorted(layers))


def _as_they_win(stages: Iterable[Stage]) -> Iterator[Entry]:
    for stage in stages:
        yield from sorted(stage, key=lambda entry: -entry.verdict)


def _asked(entry: Entry) -> tuple[int, ...]:
    """Under which peers there may be something that it overlaps."""
    return (SOMEONE,) if entry.any_peer else (EVERYONE, *entry.peers)


def _told(entry: Entry) -> tuple[int, ...]:
    """Under which peers it is found."""
    return (SOMEONE, EVERYONE) if entry.any_peer else (SOMEONE, *entry.peers)


def _cell(entry: Entry) -> Cell:
    return entry.protocol, entry.first, entry.last


def _overlap(one: Cell, other: Cell) -> bool:
    alike = one[0] == other[0] or ANY_PROTOCOL in (one[0], other[0])
    return alike and one[1] <= other[2] and other[1] <= one[2]
