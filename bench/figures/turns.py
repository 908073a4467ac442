"""Every proxy in turn, again and again: what all figures on the stage do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.figures import Effort, Report
from bench.row import Goal, Row, compared, not_measured
from bench.stage import OURS, PEERS, Running, Stage

Turns = dict[str, list[float]]
"""A figure of each proxy, one value a turn."""


def take(
    place: Stage,
    effort: Effort,
    report: Report,
    measure: Callable[[Running], dict[str, float]],
    *,
    peers: Sequence[str] = ("envoy", "haproxy", "nginx"),
) -> dict[str, Turns]:
    """figure → proxy → values. Turns alternate, so that what else the machine does falls on all alike."""
    here = [OURS, *(peer.name for peer in place.peers() if peer.name in peers)]
    found: dict[str, Turns] = {}
    for turn in range(1, effort.turns + 1):
        for name in here:
            with place.proxy(name) as running:
                values = measure(running)
            report(f"turn {turn}, {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
            for key, value in values.items():
                found.setdefault(key, {}).setdefault(name, []).append(value)
    return found


def against(
    name: str,
    unit: str,
    turns: Turns,
    peer: str,
    *,
    ours: Turns | None = None,
    goal: Goal | None = None,
    note: str = "",
) -> Row:
    """A row of ours beside one peer; where the peer is not installed, that is what the row says."""
    if peer not in turns:
        return not_measured(name, unit, _why(peer), against=peer, goal=goal)
    return compared(name, unit, (ours or turns)[OURS], turns[peer], against=peer, goal=goal, note=note)


def _why(peer: str) -> str:
    return next((one.missing() for one in PEERS if one.name == peer), "") or f"{peer} took no part"
