"""What an operator may switch in how documents are read. The defaults are those of the languages' own homes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from l7proxy.policy.rules import Reach


@dataclass(frozen=True, slots=True)
class Options:
    """`node_selectors`: fromNodes and toNodes may be used (enable-node-selector-labels).

    `icmp`: icmps may be used (enable-icmp-rules). `extended_protocols`: VRRP, IGMP, GRE, IPIP, IPV6, ESP and AH may be.
    `cidr_reach`: whom Cilium's CIDRs mean (policy-cidr-match-mode). `non_default_deny`: `enableDefaultDeny` is heeded
    (enable-non-default-deny-policies). `kubernetes_like_cilium`: Kubernetes' NetworkPolicy is read as Cilium reads it,
    not as its own words have it.
    """

    node_selectors: bool = False
    icmp: bool = True
    extended_protocols: bool = False
    cidr_reach: Reach = Reach.OUTSIDE
    non_default_deny: bool = True
    kubernetes_like_cilium: bool = False


DEFAULT: Final = Options()
LENIENT: Final = Options(node_selectors=True, extended_protocols=True)
"""Whatever some operator may have switched on: what is wrong even then is wrong in the document itself."""
