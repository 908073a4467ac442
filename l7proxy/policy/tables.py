"""The result of compile: one value per endpoint, with resolved identities and numeric ports.

The same value goes to the workers (over the link), into the kernel's desired state, and to `policy get`. It is plain
data: equal inputs give equal values.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.rules import L7Rules
from l7proxy.policy.tiers import DEFAULT

L3_ONLY: Final = 1
L3_L4: Final = 2
L4_ONLY: Final = 3
ALL: Final = 4
L3_PROTO: Final = 5
PROTO_ONLY: Final = 6


@dataclass(frozen=True, slots=True)
class Entry:
    """(peers × protocol × ports) → action.

    `peers` are identity numbers, ascending; None is every peer. `protocol` None is every protocol on all
    ports; ICMP's port is type · 256 + code. `l7` is set exactly when `action` is REDIRECT. A DENY entry with `audit`
    allows the traffic and reports it as AUDIT.
    """

    action: Action
    ref: RuleRef
    peers: tuple[int, ...] | None = None
    protocol: int | None = None
    first: int = 0
    last: int = 65535
    l7: L7Rules | None = None
    refusal: str = ""
    audit: bool = False
    log: str = ""

    @property
    def match_type(self) -> int:
        """Hubble's policy_match_type: which of peers, protocol and ports the entry restricts."""
        if self.protocol is None:
            return ALL if self.peers is None else L3_ONLY
        if (self.first, self.last) == (0, 65535):
            return PROTO_ONLY if self.peers is None else L3_PROTO
        return L4_ONLY if self.peers is None else L3_L4

    def covers(self, identity: int, protocol: int, port: int) -> bool:
        return (
            self.protocol is None or (self.protocol == protocol and self.first <= port <= self.last)
        ) and self.meets(identity)

    def meets(self, identity: int) -> bool:
        if self.peers is None:
            return True
        place = bisect_left(self.peers, identity)
        return place < len(self.peers) and self.peers[place] == identity


Stage = tuple[Entry, ...]
"""Entries of one level, in a canonical order: of those that cover a flow the highest action wins."""


@dataclass(frozen=True, slots=True)
class TierPolicy:
    """The stages of one tier, in order; the first with a covering entry decides, and PASS leaves the tier.

    `denied_by` names the policies that put the direction into default deny: they deny when no stage decides.
    `audited_by` are those that would, but are only audited. Without either the next tier is evaluated.
    """

    name: str
    stages: tuple[Stage, ...]
    denied_by: tuple[RuleRef, ...] = ()
    audited_by: tuple[RuleRef, ...] = ()


@dataclass(frozen=True, slots=True)
class DirectionPolicy:
    """All tiers that cover one direction, in order. Traffic that no tier decides is allowed.

    `governed` False: there are only built-in deny rules and no policy. Traffic that they do not deny is allowed as if
    there were no rules: its verdict names no policy and is not logged.
    """

    tiers: tuple[TierPolicy, ...]
    governed: bool = True

    @property
    def entries(self) -> Iterator[Entry]:
        return (entry for tier in self.tiers for stage in tier.stages for entry in stage)

    @property
    def denied_by(self) -> tuple[RuleRef, ...]:
        return tuple(dict.fromkeys(ref for tier in self.tiers for ref in tier.denied_by))


def union(entries: tuple[Entry, ...], denied_by: tuple[RuleRef, ...] = ()) -> DirectionPolicy:
    """A direction with all entries in one stage, as for Cilium's and Kubernetes' policies."""
    return DirectionPolicy((TierPolicy(DEFAULT.name, (entries,), denied_by),))


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """The policy of one endpoint. A direction without rules is None: everything is allowed."""

    endpoint: int
    ingress: DirectionPolicy | None = None
    egress: DirectionPolicy | None = None

    def direction(self, direction: Direction) -> DirectionPolicy | None:
        return self.ingress if direction is Direction.INGRESS else self.egress


class LocalEndpoint(msgspec.Struct, frozen=True):
    """An endpoint of this node with its policy. `name`: NAMESPACE/POD, or the words for a pod that has no object."""

    id: int
    name: str
    addresses: tuple[str, ...]
    policy: EndpointPolicy
