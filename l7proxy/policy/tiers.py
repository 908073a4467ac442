"""The one place that holds the order in which policies of all languages are asked.

A direction is judged tier by tier, ascending; within a tier level by level. A level is a set of rules of equal
standing: of those that cover a flow the strongest action wins (deny, redirect, allow, pass). Where none covers, the
next level is asked. Pass leaves the tier. At the end of a tier the flow is refused when some policy of the tier has put
the direction into default deny; else the next tier is asked. What no tier decides passes.

    tier          order   languages
    built-in      first   refusals that hold for every pod, and what policies exempt from them (`policy.encapsulation`)
    kube-admin    1 000   AdminNetworkPolicy and ClusterNetworkPolicy Admin: by priority, first match wins
    (Calico's own tiers stand by their order, also before, between and after these)
    default       10⁶     Calico's default tier, first match wins. At order 1000 in it, as one level: Kubernetes
                          NetworkPolicy (where Calico puts it) with CiliumNetworkPolicy and its cluster-wide sister
                          (where Cilium puts Kubernetes': one union, deny wins)
    kube-baseline 10⁷     BaselineAdminNetworkPolicy and ClusterNetworkPolicy Baseline

So each language alone means what it means at home, and a pod that two of them select has one written order.
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
    """Where a rule stands. Rules of one level are a union; else the lower level is asked first.

    `order` is the policy's own (Calico's `order`, infinite when not given; an admin policy's priority), `policy` breaks
    ties between policies of one order, `index` counts the rules of one policy.
    """

    tier: Tier
    order: float
    policy: str = ""
    index: int = 0


ADMIN: Final = Tier(1_000.0, "kube-admin")
DEFAULT: Final = Tier(1_000_000.0, "default")
BASELINE: Final = Tier(10_000_000.0, "kube-baseline")

UNPLACED: Final = float("-inf")
"""The order of a tier that is only named yet: `policy.references` knows where it stands."""

GUARD: Final = Level(Tier(-1e301, "built-in"), 0.0)
"""Before all languages: refusals of our own. What a policy allows by an entry for just that is exempt from them."""

FRONT: Final = Level(Tier(-1e300, "refused"), 0.0)
"""Before all other policies: where a refusal stands whose policy does not tell its place."""

UNION: Final = Level(DEFAULT, 1000.0)
"""Where CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and Kubernetes NetworkPolicy stand."""
