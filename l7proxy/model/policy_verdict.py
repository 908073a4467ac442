"""A connection as policy sees it, and the verdict of both directions on the connection or on one request of it.

msgspec arrays: they cross the link in batches, thousands per second. gc=False: they are never part of a cycle. The
bounds are checked where the agent decodes a batch: a flow can then be written in every format.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Direction, DropReason, Verdict

Port: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Octet: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=255)]
UInt32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class Conn(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A client's connection as policy sees it: the pod addresses after Service DNAT."""

    source: str
    source_port: Port
    destination: str
    destination_port: Port
    source_identity: UInt32
    destination_identity: UInt32
    protocol: Octet = 6


class PolicyVerdict(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The combined verdict of both directions.

    `direction` is the deciding one: the one that denied, else INGRESS if an ingress policy applied, else EGRESS.
    `ingress` and `egress` name the rules that allowed (or, for the deciding direction, denied); None where no policy
    applies. `reason` is for people and set on every denial. `match_type` is Hubble's policy_match_type of the deciding
    L3/L4 rule: 1 L3-Only, 2 L3-L4, 3 L4-Only, 4 all, 5 L3-Proto, 6 Proto-Only; 0 none or unknown. `log` are the texts
    that the policies of the deciding rules add to the flow (Cilium's `log.value`). `ingress_also` and `egress_also`
    name some other rules with the same result: more that allow or deny, or the other policies that deny by default.
    """

    verdict: Verdict
    direction: Direction
    ingress: RuleRef | None = None
    egress: RuleRef | None = None
    drop_reason: DropReason = DropReason.UNKNOWN
    reason: str = ""
    match_type: UInt32 = 0
    log: tuple[str, ...] = ()
    ingress_also: tuple[RuleRef, ...] = ()
    egress_also: tuple[RuleRef, ...] = ()
