"""What the leader has to write, and when: the newest text only, sooner where more changed. Pure, with time as argument.

A new version of a policy is written as soon as every node enforces it, or after NEW_VERSION seconds with the nodes that
do not. While nothing but numbers in the text change (a node joins), it has time. So a rollout, or a node that comes and
goes, costs one write for each policy, not one for each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from l7proxy.agent.cluster_status.conditions import ENFORCED, WITH_STATUS, Condition, Verdict
from l7proxy.cluster.policy_status import PolicyStatus

NEW_VERSION: Final = 3.0
"""Seconds that nodes have to enforce a new version before those that do not are named."""
WORSE: Final = 10.0
"""Seconds after which a node that no longer enforces a policy is named."""
NUMBERS: Final = 60.0
"""Seconds after which only other numbers or words are written."""


@dataclass(frozen=True, slots=True)
class Written:
    """A condition as it is in the API server."""

    condition: Condition
    since: str


@dataclass(frozen=True, slots=True)
class Known:
    """What has been written about a policy. `generation` is 0 when it is not known."""

    conditions: Mapping[str, Written]
    generation: int = 0


class Plan:
    """Used by one event loop. `verdict_of` is asked for the newest verdict of a policy."""

    def __init__(self, verdict_of: Callable[[PolicyStatus], Verdict]) -> None:
        self._verdict_of = verdict_of
        self._known: dict[str, Known] = {}
        self._policies: dict[str, PolicyStatus] = {}
        self._due: dict[str, float] = {}
        self._noticed: dict[str, float] = {}
        self._fresh = True
        self.reports_take = 0.0
        """Seconds over which the nodes spread their reports."""

    def adopt(self, known: Mapping[str, Known]) -> None:
        """What was written by an earlier leader."""
        self._known.update(known)

    def policies(self, policies: Iterable[PolicyStatus]) -> None:
        """The policies as they are now. Those without a uid are not the API server's."""
        self._policies = {one.uid: one for one in policies if one.uid}
        for kept in (self._known, self._due, self._noticed):
            for uid in kept.keys() - self._policies.keys():
                del kept[uid]
        if self._fresh:
            self._fresh = False
            self._assume_told()

    def _assume_told(self) -> None:
        """Policies of kinds without conditions that an earlier leader has dealt with: no Event says again that they
        are enforced."""
        for uid, policy in self._policies.items():
            verdict = self._verdict_of(policy)
            if policy.kind not in WITH_STATUS and verdict.enforced.status == "True":
                self.wrote(uid, verdict, "")

    @property
    def uids(self) -> Iterable[str]:
        return tuple(self._policies)

    def consider(self, uid: str, now: float) -> None:
        """Look at one policy again: something about it may have changed."""
        policy = self._policies.get(uid)
        if policy is None:
            return
        verdict, known = self._verdict_of(policy), self._known.get(uid)
        if known is not None and _same(policy, verdict, known):
            self._due.pop(uid, None)
            self._noticed.pop(uid, None)
        else:
            late = 0.0 if verdict.settled else self.reports_take
            self._due[uid] = self._noticed.setdefault(uid, now) + _patience(verdict, known) + late

    def next(self, now: float) -> tuple[PolicyStatus, Verdict] | float:
        """The policy to write now, or the time of the next one; infinity: there is none."""
        if not self._due:
            return float("inf")
        uid = min(self._due, key=self._due.__getitem__)
        if self._due[uid] > now:
            return self._due[uid]
        policy = self._policies[uid]
        return policy, self._verdict_of(policy)

    def dated(self, uid: str, verdict: Verdict, now: str) -> dict[str, Written]:
        """The conditions to write, each with the time since which it has its status."""
        known = self._known.get(uid, Known({})).conditions
        found = {}
        for one in verdict.conditions:
            old = known.get(one.type)
            kept = old is not None and old.condition.status == one.status and old.since
            found[one.type] = Written(one, old.since if old is not None and kept else now)
        return found

    def wrote(self, uid: str, verdict: Verdict, now: str) -> None:
        """The verdict was written; or it cannot be, and is not tried again until it changes."""
        if uid in self._policies:
            self._known[uid] = Known(self.dated(uid, verdict, now), verdict.generation)
        self._due.pop(uid, None)
        self._noticed.pop(uid, None)


def _same(policy: PolicyStatus, verdict: Verdict, known: Known) -> bool:
    before = {kind: one.condition for kind, one in known.conditions.items()}
    if policy.kind in WITH_STATUS:
        return known.generation in (0, verdict.generation) and all(
            before.get(one.type) == one for one in verdict.conditions
        )
    return not _material(verdict, known)


def _material(verdict: Verdict, known: Known) -> bool:
    """Whether more than numbers in the text differ: the version, or the status or reason of a condition."""
    if known.generation and known.generation != verdict.generation:
        return True
    before = {kind: (one.condition.status, one.condition.reason) for kind, one in known.conditions.items()}
    return any(before.get(one.type) != (one.status, one.reason) for one in verdict.conditions)


def _patience(verdict: Verdict, known: Known | None) -> float:
    if known is None or ENFORCED not in known.conditions or known.generation not in (0, verdict.generation):
        return 0.0 if verdict.settled else NEW_VERSION
    if not _material(verdict, known):
        return NUMBERS
    return 0.0 if verdict.settled else WORSE
