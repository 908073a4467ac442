"""What compile makes: one value per endpoint, with identities resolved and ports as numbers.

The same value goes to the workers (over the link), into the kernel picture, and to `policy get`. It is plain data:
equal inputs give equal values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.rules import HttpRule

L3_ONLY: Final = 1
L3_L4: Final = 2
L4_ONLY: Final = 3
ALL: Final = 4
L3_PROTO: Final = 5
PROTO_ONLY: Final = 6


@dataclass(frozen=True, slots=True)
class Entry:
    """(peers × protocol × ports) → action.

    `peers` are identity numbers, ascending; None is everyone. `protocol` None is every protocol on all
    ports. `http` is set exactly when `action` is REDIRECT.
    """

    action: Action
    ref: RuleRef
    peers: tuple[int, ...] | None = None
    protocol: int | None = None
    first: int = 0
    last: int = 65535
    http: tuple[HttpRule, ...] | None = None
    refusal: str = ""

    @property
    def match_type(self) -> int:
        """Hubble's policy_match_type: by what the entry tells flows apart, peers, protocol and ports."""
        if self.protocol is None:
            return ALL if self.peers is None else L3_ONLY
        if (self.first, self.last) == (0, 65535):
            return PROTO_ONLY if self.peers is None else L3_PROTO
        return L4_ONLY if self.peers is None else L3_L4

    def covers(self, identity: int, protocol: int, port: int) -> bool:
        return (self.protocol is None or (self.protocol == protocol and self.first <= port <= self.last)) and (
            self.peers is None or identity in self.peers
        )


@dataclass(frozen=True, slots=True)
class DirectionPolicy:
    """All entries of one direction, in a canonical order. Without a covering entry the answer is no.

    A direction that is not in default deny but has entries (deny rules with `enableDefaultDeny: false`) ends with an
    entry that allows everyone; so does the host's way in.
    `denied_by` names the policies that put the direction into default deny: they are who refuses when nothing covers.
    """

    entries: tuple[Entry, ...]
    denied_by: tuple[RuleRef, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """What is enforced on one endpoint. A direction that no policy governs is None: everything passes."""

    endpoint: int
    ingress: DirectionPolicy | None = None
    egress: DirectionPolicy | None = None

    def direction(self, direction: Direction) -> DirectionPolicy | None:
        return self.ingress if direction is Direction.INGRESS else self.egress
