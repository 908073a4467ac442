"""Measures every proxy in alternating turns, for all figures on the stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.figures import Effort, Report
from bench.row import Goal, Row, compared, not_measured
from bench.stage import OURS, PEERS, Running, Stage

Turns = dict[str, list[float]]
"""The values of one figure, by proxy, one per turn."""


def take(
    place: Stage,
    effort: Effort,
    report: Report,
    measure: Callable[[Running], dict[str, float]],
    *,
    peers: Sequence[str] = ("envoy", "haproxy", "nginx"),
) -> dict[str, Turns]:
    """figure → proxy → values. Turns alternate, so that other load on the machine affects all proxies alike."""
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
    """A row of our value and one peer's; if the peer is not installed, the row says so."""
    if peer not in turns:
        return not_measured(name, unit, _why(peer), against=peer, goal=goal)
    return compared(name, unit, (ours or turns)[OURS], turns[peer], against=peer, goal=goal, note=note)


def _why(peer: str) -> str:
    return next((one.missing() for one in PEERS if one.name == peer), "") or f"{peer} took no part"
