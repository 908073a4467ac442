"""Cilium's policy-enforcement-mode `always`: every pod is in default deny in both directions, even without a policy.

Mode `never` is not supported: audit allows everything too, and reports what would have been denied.
"""

from __future__ import annotations

from typing import Final

from l7proxy.model.labels import K8S, NAMESPACE_KEY, Operator, Requirement, Selector
from l7proxy.model.ref import BUILT_IN, RuleRef
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.rules import Rule

MODE: Final = RuleRef(BUILT_IN, "", "policy-enforcement-mode")
_EVERY_POD: Final = Selector((Requirement(K8S, NAMESPACE_KEY, Operator.EXISTS),))

ALWAYS: Final = tuple(
    Rule(MODE, _EVERY_POD, direction, Action.ALLOW, peers=()) for direction in (Direction.INGRESS, Direction.EGRESS)
)
"""Rules that allow no peer, and so put both directions into default deny."""
