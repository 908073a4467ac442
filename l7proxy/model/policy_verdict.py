"""A connection as policy sees it, and the verdict of both directions on one thing it carries.

msgspec arrays: they cross the link in batches, thousands a second. gc=False: none of them is part of a cycle.
"""

from __future__ import annotations

import msgspec

from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Direction, DropReason, Verdict


class Conn(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A client's connection as the policy sees it: the real pod addresses, after Service DNAT. Ports are numbers."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    source_identity: int
    destination_identity: int
    protocol: int = 6


class PolicyVerdict(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The answer to one question, both directions together.

    `direction` is the deciding one: that which refused, else INGRESS if an ingress policy was asked, else EGRESS.
    `ingress` and `egress` name the rules that allowed (or, on the deciding direction, refused); None where no policy
    asks. `reason` is for humans and set on every denial. `match_type` is Hubble's policy_match_type of the rule that
    decided at L3/L4: 1 L3-Only, 2 L3-L4, 3 L4-Only, 4 all, 5 L3-Proto, 6 Proto-Only; 0 none, or not said. `log` are
    the words that the policies of the rules which decided want in the flow (Cilium's `log.value`).
    """

    verdict: Verdict
    direction: Direction
    ingress: RuleRef | None = None
    egress: RuleRef | None = None
    drop_reason: DropReason = DropReason.UNKNOWN
    reason: str = ""
    match_type: int = 0
    log: tuple[str, ...] = ()
