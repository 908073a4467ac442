"""Defines the order in which policies of all languages are evaluated. No other module does.

A direction is evaluated tier by tier, ascending; within a tier level by level. A level is a set of rules of equal
precedence: of those that cover a flow the strongest action wins (deny, redirect, allow, pass). If none covers it, the
next level is evaluated. Pass leaves the tier. At the end of a tier the flow is denied if a policy of the tier has put
the direction into default deny; else the next tier is evaluated. A flow that no tier decides is allowed.

    tier          order   languages
    built-in      first   deny rules for every pod, with exemptions that policies make (`policy.encapsulation`)
    kube-admin    1 000   AdminNetworkPolicy and ClusterNetworkPolicy Admin: by priority, first match wins
    (Calico's own tiers are placed by their order, also before, between and after these)
    default       10⁶     Calico's default tier, first match wins. At order 1000 in it, as one level: Kubernetes
                          NetworkPolicy (where Calico places it), CiliumNetworkPolicy and
                          CiliumClusterwideNetworkPolicy (with Kubernetes', as in Cilium: one union, deny wins)
    kube-baseline 10⁷     BaselineAdminNetworkPolicy and ClusterNetworkPolicy Baseline

So each language alone has its original semantics, and the order is defined for a pod that several languages select.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, order=True)
class Tier:
    """Ascending by order, then by name (Calico's rule)."""

    order: float
    name: str


@dataclass(frozen=True, slots=True, order=True)
class Level:
    """The place of a rule in the order. Rules of one level are a union; lower levels are evaluated first.

    `order` comes from the policy (Calico's `order`, infinite when absent; an admin policy's priority), `policy` breaks
    ties between policies of equal order, `index` counts the levels of one policy.
    """

    tier: Tier
    order: float
    policy: str = ""
    index: int = 0


ADMIN: Final = Tier(1_000.0, "kube-admin")
DEFAULT: Final = Tier(1_000_000.0, "default")
BASELINE: Final = Tier(10_000_000.0, "kube-baseline")

UNPLACED: Final = float("-inf")
"""The order of a tier that is only known by name: `policy.references` resolves it."""

GUARD: Final = Level(Tier(-1e301, "built-in"), 0.0)
"""Before all languages: built-in deny rules. A policy entry for exactly the same port or protocol is exempt."""

FRONT: Final = Level(Tier(-1e300, "refused"), 0.0)
"""Before all policies: the level of deny rules for a policy whose own level cannot be read."""

UNION: Final = Level(DEFAULT, 1000.0)
"""The level of CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and Kubernetes NetworkPolicy."""
