"""What components take, made from the settings: the composition roots pass each only the values that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from l7proxy.cluster.identity_labels import LabelFilter
from l7proxy.cluster.state import ClusterState
from l7proxy.gate.options import HttpOptions
from l7proxy.model.verdict import Protocol
from l7proxy.policy.encapsulation import no_encapsulation
from l7proxy.policy.lang.options import Options
from l7proxy.policy.rules import Reach
from l7proxy.setting_definitions import Settings
from l7proxy.wire.path import PathRules
from tproxy_rules import desired

CIDR_MATCH: Final[Mapping[str, Reach]] = {"": Reach.OUTSIDE, "nodes": Reach.NODES, "nodes,pods": Reach.ANYWHERE}


def http_options(settings: Settings) -> HttpOptions:
    return HttpOptions(
        paths=PathRules(
            allow_matrix=settings.matrix_parameters == "pass",
            redirect_escaped_slashes=settings.escaped_slashes == "redirect",
            allow_connect=settings.connect,
        ),
        flow_headers=frozenset(name.lower().encode() for name in settings.flow_headers),
        flow_query=settings.flow_query,
        deny_header=settings.deny_header,
    )


def policy_options(settings: Settings) -> Options:
    return Options(
        node_selectors=settings.enable_node_selector_labels,
        icmp=settings.enable_icmp_rules,
        extended_protocols=settings.enable_extended_ip_protocols,
        cidr_reach=CIDR_MATCH[settings.policy_cidr_match_mode],
        non_default_deny=settings.enable_non_default_deny_policies,
        kubernetes_like_cilium=settings.kubernetes_network_policy == "cilium",
        probes_only=settings.node_access == "probes",
    )


def kernel(settings: Settings) -> desired.Settings:
    return desired.Settings(
        listeners=((Protocol.TCP.value, settings.proxy_port),),
        mark_proxy=settings.mark_proxy,
        mark_upstream=settings.mark_upstream,
        route_table=settings.route_table,
        rule_priority=settings.rule_priority,
        nflog_group=settings.nflog_group,
        refuse_with_reset=settings.refuse == "reset",
        log_rate=settings.log_rate,
    )


def empty_cluster(settings: Settings) -> ClusterState:
    """State without resources that reads policies like an agent with these settings."""
    return ClusterState(
        cluster=settings.cluster,
        secrets_namespace=settings.secrets_namespace,
        audit_all=settings.audit,
        options=policy_options(settings),
        kept=LabelFilter(settings.labels),
        enforce_always=settings.policy_enforcement_mode == "always",
        everywhere=no_encapsulation(settings.tunnel_ports, settings.tunnel_protocols),
    )
