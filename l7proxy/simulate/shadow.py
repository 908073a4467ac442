"""Judges flows as they come by a second set of policies, which is not in force: what would change?

As `replay`, one flow after the other: of an EGRESS verdict of Cilium it is not known whether the destination's will
follow, so what its policies would refuse is not judged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from l7proxy.flows.flow import Flow
from l7proxy.learn.observation import Observation, observe
from l7proxy.model.cache import remember
from l7proxy.simulate.recorded import Judge
from l7proxy.simulate.replay import NOT_INSPECTED, Change, change_of, kind_of, uninspected

REMEMBERED: Final = 16384
"""Kinds of flows whose judgement is kept: clients choose the paths."""
UNCHANGED: Final = "unchanged"
UNJUDGED: Final = "unjudged"


@dataclass(frozen=True, slots=True)
class Would:
    """What the shadow policies say of a flow. `would`: denied, allowed, unchanged or unjudged (`why` says why)."""

    would: str
    change: Change | None = None
    why: str = ""

    @property
    def policy(self) -> str:
        """NAMESPACE/NAME of the policy that would decide otherwise; "" if there is none."""
        ref = self.change.policy if self.change is not None else None
        return "" if ref is None else f"{ref.namespace}/{ref.name}" if ref.namespace else ref.name

    def to_json(self) -> dict[str, Any]:
        """The field `shadow` of a flow."""
        if self.change is None:
            return {"would": self.would, "reason": self.why}
        said = self.change.to_json()
        return {name: said[name] for name in ("would", "direction", "policy", "reason")}


class Shadow:
    """One set of policies, and what it has said already."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._known: dict[Observation, Would] = {}

    def see(self, flows: Iterable[Flow]) -> list[tuple[Flow, Would]]:
        """The judgement of each flow that is the verdict of a policy. Cheaper for many flows together."""
        seen = [(flow, found) for flow in flows if not isinstance(found := observe(flow), str)]
        kinds = [(flow, kind_of(found)) for flow, found in seen]
        self.judge.enrol(kind for _, kind in kinds if kind not in self._known)
        return [(flow, self._would(kind)) for flow, kind in kinds]

    def _would(self, kind: Observation) -> Would:
        found = self._known.get(kind)
        return found if found is not None else remember(self._known, kind, self._judged(kind), REMEMBERED)

    def _judged(self, kind: Observation) -> Would:
        found = self.judge.judge(kind)
        if found.unjudged:
            return Would(UNJUDGED, why=found.unjudged)
        if uninspected(kind, found):
            return Would(UNJUDGED, why=NOT_INSPECTED)
        change = change_of(kind, found)
        return Would(UNCHANGED) if change is None else Would(change.would, change)
