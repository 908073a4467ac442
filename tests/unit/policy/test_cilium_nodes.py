"""Nodes as peers: by their labels if that is enabled, and by CIDR if nodes are matched by CIDR."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from l7proxy.cluster.policy_status import PolicyPhase
from l7proxy.policy.lang import Options
from l7proxy.policy.rules import Reach

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

ON = Options(node_selectors=True)
FLAG = 'FromNodes/ToNodes rules can only be applied when the "enable-node-selector-labels" flag is set'

NODES = [
    ("2.3.9 and 11.70 the empty selector is every other node, never this one", "{}", "n2 n3"),
    ("2.3.9 by a label", "{matchLabels: {zone: west}}", "n2"),
    ("2.3.9 this node's labels do not matter", "{matchLabels: {zone: east}}", "n3"),
    ("2.3.9 by a label of the node's own source", "{matchLabels: {'node:zone': west}}", "n2"),
    ("2.3.9 by a label of another source", "{matchLabels: {'k8s:zone': west}}", ""),
    ("2.3.9 by what a label is not", "{matchExpressions: [{key: zone, operator: NotIn, values: [west]}]}", "n3"),
    ("2.3.9 by a label that no node has", "{matchExpressions: [{key: rack, operator: Exists}]}", ""),
    ("2.3.9 an API server's node is a node", "{matchExpressions: [{key: zone, operator: Exists}]}", "n2 n3"),
    ("2.3.9 pods' labels select no node", "{matchLabels: {app: a}}", ""),
    ("2.3.9 by our cluster", "{matchLabels: {io.cilium.k8s.policy.cluster: default}}", "n2 n3"),
    ("2.3.9 by another cluster", "{matchLabels: {'k8s:io.cilium.k8s.policy.cluster': east}}", ""),
]
EVERYONE = ("n1", "n2", "n3", "a", "b", "other/a", "outside", "apiserver", "10.2.0.99")


@pytest.mark.parametrize(("selector", "expected"), [row[1:] for row in NODES], ids=[row[0] for row in NODES])
def test_to_nodes(selector: str, expected: str, bench: Bench) -> None:
    town = bench.town(f"egress: [{{toNodes: [{selector}]}}]", options=ON)
    assert " ".join(who for who in EVERYONE if town.egress(who) == "allow") == expected


@pytest.mark.parametrize(("selector", "expected"), [row[1:] for row in NODES], ids=[row[0] for row in NODES])
def test_from_nodes(selector: str, expected: str, bench: Bench) -> None:
    """The rule does not match the local host, which is allowed anyway."""
    town = bench.town(f"ingress: [{{fromNodes: [{selector}]}}]", options=ON)
    assert " ".join(who for who in EVERYONE if town.ingress(who) == "allow") == f"n1 {expected}".strip()


def test_nodes_with_labels_are_still_the_entities_that_they_are(bench: Bench) -> None:
    town = bench.town("egress: [{toEntities: [remote-node]}]", options=ON)
    assert town.egress("n1", "n2", "n3") == "no rule allow allow"
    town = bench.town("egress: [{toEntities: [kube-apiserver]}]", options=ON)
    assert town.egress("n2", "n3", "apiserver") == "no rule allow allow"


def test_a_denied_node_is_denied(bench: Bench) -> None:
    town = bench.town(
        "egressDeny: [{toNodes: [{matchLabels: {zone: west}}]}]", "egress: [{toEntities: [all]}]", options=ON
    )
    assert town.egress("n2", "n3") == "deny allow"


@pytest.mark.parametrize("spec", ["ingress: [{fromNodes: [{}]}]", "egressDeny: [{toNodes: [{matchLabels: {a: b}}]}]"])
def test_1_6_25_nodes_are_refused_while_switched_off(spec: str, bench: Bench) -> None:
    town = bench.town(spec)
    (policy,) = town.view.policies
    assert policy.state is PolicyPhase.REFUSED
    assert policy.reason.endswith(FLAG)
    way = town.ingress if "ingress" in spec else town.egress
    assert way("a", "n2") == "deny deny"


def test_1_7_5_an_empty_list_of_nodes_is_nobody_and_needs_no_switch(bench: Bench) -> None:
    assert bench.town("egress: [{toNodes: []}]").egress("n2", "a") == "no rule no rule"


def test_node_labels_are_no_part_of_identities_while_switched_off(bench: Bench) -> None:
    view = bench.town("egress: [{}]").view
    assert {label.source for one in view.identities.values() for label in one.labels.labels} >= {"k8s", "reserved"}
    assert all(label.source != "node" for one in view.identities.values() for label in one.labels.labels)


MODES = [
    ("3.7.2 by default a CIDR matches no node and no pod", Reach.OUTSIDE, "outside apiserver"),
    ("3.7.2 with nodes it matches this and other nodes", Reach.NODES, "n1 n2 n3 outside apiserver"),
    ("3.7.2 with nodes and pods it matches all", Reach.ANYWHERE, "n1 n2 n3 a b other/a outside apiserver 10.2.0.99"),
]


@pytest.mark.parametrize(("reach", "expected"), [row[1:] for row in MODES], ids=[row[0] for row in MODES])
def test_whom_a_cidr_means(reach: Reach, expected: str, bench: Bench) -> None:
    town = bench.town("egress: [{toCIDR: [0.0.0.0/0]}]", options=Options(cidr_reach=reach))
    assert " ".join(who for who in EVERYONE if town.egress(who) == "allow") == expected


def test_3_7_2_exceptions_hold_for_nodes_too(bench: Bench) -> None:
    only_n2 = "egress: [{toCIDRSet: [{cidr: 192.168.0.0/24, except: [192.168.0.0/31, 192.168.0.3/32]}]}]"
    town = bench.town(only_n2, options=Options(cidr_reach=Reach.NODES))
    assert town.egress("n1", "n2", "n3") == "no rule allow no rule"


def test_3_7_2_a_group_means_whom_a_cidr_means(bench: Bench) -> None:
    town = bench.town(
        "egress: [{toCIDRSet: [{cidrGroupRef: nodes}]}]",
        more="""
- {apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, metadata: {name: nodes}, spec: {externalCIDRs: [192.168.0.2/32]}}
""",
        options=Options(cidr_reach=Reach.NODES),
    )
    assert town.egress("n1", "n2", "n3", "a") == "no rule allow no rule no rule"
