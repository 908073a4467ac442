"""Operator options for parsing documents. The defaults are those of Cilium, Kubernetes and Calico."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from l7proxy.policy.rules import Reach


@dataclass(frozen=True, slots=True)
class Options:
    """`node_selectors`: fromNodes and toNodes may be used (enable-node-selector-labels).

    `icmp`: icmps may be used (enable-icmp-rules). `extended_protocols`: VRRP, IGMP, GRE, IPIP, IPV6, ESP and AH may be
    used. `cidr_reach`: which addresses Cilium's CIDRs match (policy-cidr-match-mode). `non_default_deny`:
    `enableDefaultDeny` has effect (enable-non-default-deny-policies). `kubernetes_like_cilium`: Kubernetes'
    NetworkPolicy has Cilium's semantics instead of those in its API documentation. `probes_only`: pods are read with
    their probes, and under a policy a node may reach only those in its pods (node-access).
    """

    node_selectors: bool = False
    icmp: bool = True
    extended_protocols: bool = False
    cidr_reach: Reach = Reach.OUTSIDE
    non_default_deny: bool = True
    kubernetes_like_cilium: bool = False
    probes_only: bool = False


DEFAULT: Final = Options()
