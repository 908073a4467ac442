"""Kernel forwarding cost: a packet's path through the node with few and with very many policy entries, in hash sets
(as l7proxy has them) and as a linear chain of rules (as in iptables)."""

from __future__ import annotations

import shutil

from bench import kernel_lookup
from bench.cores import pinned
from bench.figures import Alone, Effort, Report
from bench.kernel_lookup import Ground
from bench.row import Goal, Row, compared, not_measured

FEW, MANY = 10, 100_000
LINEAR = 10_000
NAME, UNIT = "packet cost with {} policy entries", "ns"


def measure(effort: Effort, report: Report) -> list[Row]:
    turns, seconds = (2, 0.3) if effort.quick else (6, 1.0)
    core = pinned().proxy[0]
    with kernel_lookup.ground() as place:
        ours = _ours(place, turns, seconds, core, report)
        rows = [compared(NAME.format(MANY), UNIT, ours[MANY], ours[FEW], against=f"{FEW} entries", goal=Goal(1.1))]
        return [*rows, _contrast(place, turns, seconds, core, report)]


def _ours(place: Ground, turns: int, seconds: float, core: int, report: Report) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {FEW: [], MANY: []}
    for turn in range(1, turns + 1):
        for entries in (FEW, MANY):
            took = kernel_lookup.in_force(place, entries)
            found[entries].append(place.ns_per_packet(seconds, core))
            report(f"turn {turn}, {entries} entries: {found[entries][-1]:.0f} ns a packet (in force in {took:.1f} s)")
    kernel_lookup.without_ours()
    return found


def _contrast(place: Ground, turns: int, seconds: float, core: int, report: Report) -> Row:
    name = f"the same with {LINEAR} iptables rules in a line"
    if shutil.which("iptables-restore") is None:
        return not_measured(name, UNIT, "iptables is not installed")
    found: dict[int, list[float]] = {FEW: [], LINEAR: []}
    for turn in range(1, max(2, turns // 2) + 1):
        for rules in (FEW, LINEAR):
            kernel_lookup.linear(place, rules)
            found[rules].append(place.ns_per_packet(seconds, core))
            report(f"turn {turn}, {rules} iptables rules: {found[rules][-1]:.0f} ns a packet")
    kernel_lookup.without_linear(place)
    return compared(name, UNIT, found[LINEAR], found[FEW], against=f"{FEW} rules", note="a contrast, not a goal")


FIGURE = Alone("packet-cost", "packet cost with 100 000 policy entries ÷ with 10, and iptables in a line", measure)
