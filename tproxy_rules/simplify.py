"""Reduces a table to fewer tiers and stages: drops what is unreachable or has no effect.

The verdict does not change for any packet: tests compare each result with the original table. A union stays one tier
with one stage, and most sets of ordered rules become a few stages. If more tiers remain than the kernel can nest, the
table refuses everything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from tproxy_rules.desired import MAX_TIERS, Entry, Stage, Table, Tier, Verdict, union
from tproxy_rules.stages import pack_stages
from tproxy_rules.validate import ANY_PROTOCOL

log = logging.getLogger(__name__)


def simplified(table: Table) -> Table:
    """Deterministic: equal tables give equal results. Idempotent."""
    tiers = _reached(_compact(_shortened(tier)) for tier in table.tiers)
    while tiers and not tiers[-1].closed and not tiers[-1].stages:
        tiers.pop()
    if tiers:
        tiers[-1] = _last(tiers[-1])
    joined: list[Tier] = []
    for tier in tiers:
        if joined and not joined[-1].closed and not _passes(joined[-1]):
            joined[-1] = Tier(joined[-1].stages + tier.stages, tier.closed)  # always continues with the next tier
        else:
            joined.append(tier)
    found = tuple(tier for tier in map(_compact, joined) if tier.closed or tier.stages)
    if len(found) > MAX_TIERS:
        log.warning(
            "an endpoint's policy chains %d tiers with Pass, the kernel limit is %d: its traffic is refused",
            len(found),
            MAX_TIERS,
        )
        return union(())
    return replace(table, tiers=found)


def _compact(tier: Tier) -> Tier:
    return _trimmed(Tier(pack_stages(_merged(_trimmed(tier).stages)), tier.closed))


def _shortened(tier: Tier) -> Tier:
    """Cut the tier after a stage that covers everything, because later stages are unreachable."""
    for index, stage in enumerate(tier.stages):
        everything = [entry.verdict for entry in stage if entry.any_peer and entry.protocol == ANY_PROTOCOL]
        if everything:
            before = tier.stages[:index]
            if max(everything) is Verdict.PASS:
                return Tier((*before, _without(stage, Verdict.PASS)), closed=False)
            return Tier((*before, stage), closed=True)
    return tier


def _reached(tiers: Iterable[Tier]) -> list[Tier]:
    """Drop tiers after a closed tier without PASS, because they are unreachable."""
    reached: list[Tier] = []
    for tier in tiers:
        reached.append(tier)
        if tier.closed and not _passes(tier):
            break
    return reached


def _last(tier: Tier) -> Tier:
    """PASS becomes ALLOW: after the last tier everything passes."""
    return replace(tier, stages=tuple(_allowing(stage) for stage in tier.stages))


def _allowing(stage: Stage) -> Stage:
    found = {replace(one, verdict=Verdict.ALLOW) if one.verdict is Verdict.PASS else one for one in stage}
    return tuple(sorted(found))


def _trimmed(tier: Tier) -> Tier:
    """Drop trailing entries that say the same as the end of the tier."""
    needless = Verdict.DENY if tier.closed else Verdict.PASS
    stages = [stage for stage in tier.stages if stage]
    while stages and {entry.verdict for entry in stages[-1]} == {needless}:
        stages.pop()
    if stages and not tier.closed:
        stages[-1] = _without(stages[-1], Verdict.PASS)
    return Tier(tuple(stages), tier.closed)


def _merged(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """Join neighbouring stages if no entry of the first is weaker than any of the second: the result is the same."""
    merged: list[set[Entry]] = []
    for stage in stages:
        if merged and min(one.verdict for one in merged[-1]) >= max(one.verdict for one in stage):
            merged[-1].update(stage)
        else:
            merged.append(set(stage))
    return tuple(tuple(sorted(stage)) for stage in merged)


def _passes(tier: Tier) -> bool:
    return any(entry.verdict is Verdict.PASS for stage in tier.stages for entry in stage)


def _without(stage: Stage, verdict: Verdict) -> Stage:
    return tuple(entry for entry in stage if entry.verdict is not verdict)
