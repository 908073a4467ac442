"""Rows on default deny, emptiness, clusters, filtered labels and the local host, from manifests to verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from l7proxy.cluster.identity_labels import LabelFilter
from l7proxy.model.verdict import Direction
from l7proxy.policy import lang
from l7proxy.policy.lang import Options

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

EVERYONE = ("n1", "n2", "a", "b", "other/a", "outside")
HTTP_A = "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]"
NS = "io.kubernetes.pod.namespace"
CLUSTER = "io.cilium.k8s.policy.cluster"

EMPTY = [
    ("1.7.5 no nodes is nobody", "{toNodes: [], toPorts: [{ports: [{port: '80'}]}]}", "no rule"),
    ("1.7.5 no Services is nobody", "{toServices: [], toPorts: [{ports: [{port: '80'}]}]}", "no rule"),
    ("1.7.13 no names is as if absent", "{toFQDNs: [], toPorts: [{ports: [{port: '80'}]}]}", "allow"),
    ("1.7.13 no groups is as if absent", "{toGroups: [], toPorts: [{ports: [{port: '80'}]}]}", "allow"),
    ("1.7.13 no names and nothing else is an empty item", "{toFQDNs: []}", "no rule"),
    ("1.7.13 no names beside no CIDR is nobody", "{toFQDNs: [], toCIDR: []}", "no rule"),
    ("1.7.9 an empty icmps item is nothing", "{toEntities: [all], icmps: [{}]}", "no rule"),
    ("1.7.10 rules that are empty are none", "{toPorts: [{ports: [{port: '80'}], rules: {dns: []}}]}", "allow"),
    ("removed lists that are empty are as if absent", "{toRequires: [], toEntities: [world]}", "allow"),
]


@pytest.mark.parametrize(("item", "expected"), [row[1:] for row in EMPTY], ids=[row[0] for row in EMPTY])
def test_emptiness(item: str, expected: str, bench: Bench) -> None:
    town = bench.town(f"egress: [{item}]")
    assert town.egress("outside") == expected


@pytest.mark.parametrize("name", ["toFQDNs", "toGroups"])
def test_1_7_13_that_an_empty_list_is_as_if_absent_is_noted(name: str, bench: Bench) -> None:
    (note,) = lang.notes(bench.cnp(f"egress: [{{{name}: []}}]"))
    assert str(note) == f"spec.egress[0].{name}: is empty, the same as an absent field: every peer"


OFF_IN = "enableDefaultDeny: {ingress: false}"
OFF_OUT = "enableDefaultDeny: {egress: false}"
DEFAULT_DENY = [
    (
        "2.5.4 ingress deny rules without it leave the rest",
        f"{{ingressDeny: [{{fromEntities: [world]}}], {OFF_IN}}}",
        "a",
        "allow",
    ),
    ("2.5.4 and deny what they name", f"{{ingressDeny: [{{fromEntities: [world]}}], {OFF_IN}}}", "outside", "deny"),
    (
        "2.5.6 ingress allow rules without it leave everything allowed",
        f"{{ingress: [{{fromEntities: [none]}}], {OFF_IN}}}",
        "outside",
        "allow",
    ),
    ("2.5 it is per direction", f"{{ingress: [{{}}], egress: [{{}}], {OFF_OUT}}}", "a", "no rule"),
    (
        "2.5 an unresolved name without it",
        f"{{ingress: [{{toPorts: [{{ports: [{{port: nobody}}]}}]}}], {OFF_IN}}}",
        "a",
        "allow",
    ),
    ("2.5 an unresolved name with it", "ingress: [{toPorts: [{ports: [{port: nobody}]}]}]", "a", "no rule"),
    ("3.2.5 HTTP without it is steered", f"{{ingress: [{{{HTTP_A}}}], {OFF_IN}}}", "a", "proxy, all allowed"),
    (
        "3.2.5 who has no HTTP rule is not",
        f"{{ingress: [{{fromEntities: [world], {HTTP_A}}}], {OFF_IN}}}",
        "a",
        "allow",
    ),
]


@pytest.mark.parametrize(
    ("spec", "peer", "expected"), [row[1:] for row in DEFAULT_DENY], ids=[row[0] for row in DEFAULT_DENY]
)
def test_default_deny(spec: str, peer: str, expected: str, bench: Bench) -> None:
    assert bench.town(spec).ingress(peer) == expected


def test_3_2_5_http_rules_cannot_deny_where_nothing_is_in_default_deny(bench: Bench) -> None:
    land = bench.enforce(f"{{ingress: [{{{HTTP_A}}}], {OFF_IN}}}")
    assert [land.http("a", f"GET {path}") for path in ("/a", "/b")] == ["allow", "allow"]
    land = bench.enforce(f"{{ingress: [{{{HTTP_A}}}], {OFF_IN}}}", "ingress: [{}]")
    assert [land.http("a", f"GET {path}") for path in ("/a", "/b")] == ["allow", "deny"]


def test_2_5_policies_without_default_deny_may_be_switched_off(bench: Bench) -> None:
    spec = f"{{ingressDeny: [{{fromEntities: [world]}}], {OFF_IN}}}"
    off = Options(non_default_deny=False)
    assert bench.town(spec, options=off).ingress("outside", "a") == "deny no rule"
    assert [str(note) for note in lang.notes(bench.cnp(spec), options=off)] == [
        "spec.enableDefaultDeny.ingress: has no effect: policies without default deny are disabled"
    ]
    assert bench.town("egress: [{}]", options=off).ingress("a") == "allow", "a direction without entries stays open"


def test_1_1_every_spec_has_its_own_subject_and_default_deny(bench: Bench) -> None:
    document: Any = bench.cnp(f"{{ingress: [{{fromEntities: [none]}}], {OFF_IN}}}")
    document["specs"] = [
        {"endpointSelector": {"matchLabels": {"app": "a"}}, "ingress": [{}]},
        {"endpointSelector": {"matchLabels": {"app": "server"}}, "egress": [{"toEntities": ["world"]}]},
    ]
    town = bench.town(document)
    assert (town.ingress("b"), town.egress("b"), town.egress("outside")) == ("allow", "no rule", "allow")


CLUSTERS = [
    ("2.3.8 the local cluster by its name", f"{{matchLabels: {{{CLUSTER}: west, {NS}: other}}}}", "other/a"),
    ("2.3.8 another cluster has nobody here", f"{{matchLabels: {{{CLUSTER}: east, {NS}: other}}}}", ""),
    ("2.3.8 without a namespace it is still the policy's", f"{{matchLabels: {{{CLUSTER}: west}}}}", "a b"),
    ("2.3.8 without a cluster it is the local one", "{}", "a b"),
    (
        "2.3.8 a cluster key of a source that no cluster has leaves it local",
        f"{{matchExpressions: [{{key: {NS}, operator: NotIn, values: [x]}}, "
        f"{{key: 'container:{CLUSTER}', operator: DoesNotExist}}]}}",
        "a b other/a",
    ),
]


@pytest.mark.parametrize(("selector", "expected"), [row[1:] for row in CLUSTERS], ids=[row[0] for row in CLUSTERS])
def test_clusters(selector: str, expected: str, bench: Bench) -> None:
    town = bench.town(f"egress: [{{toEndpoints: [{selector}]}}]", cluster="west")
    assert " ".join(who for who in EVERYONE if town.egress(who) == "allow") == expected


LABELS = [
    ("2.2.2 a label of the namespace", "{matchLabels: {'io.cilium.k8s.namespace.labels.team': blue}}", "other/a"),
    (
        "2.2.2 a namespace by the label that all have",
        "{matchLabels: {'io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name': other}}",
        "other/a",
    ),
    ("2.2.3 the service account", "{matchLabels: {io.cilium.k8s.policy.serviceaccount: default}}", "a b"),
    ("11.11 a label that the filter drops matches nobody", "{matchLabels: {pod-template-hash: x}}", ""),
    (
        "11.11 so that it is missing from everyone",
        "{matchExpressions: [{key: pod-template-hash, operator: DoesNotExist}]}",
        "a b",
    ),
]


@pytest.mark.parametrize(("selector", "expected"), [row[1:] for row in LABELS], ids=[row[0] for row in LABELS])
def test_labels_of_identities(selector: str, expected: str, bench: Bench) -> None:
    town = bench.town(f"egress: [{{toEndpoints: [{selector}]}}]")
    assert " ".join(who for who in EVERYONE if town.egress(who) == "allow") == expected


def test_11_11_a_subject_by_a_label_that_the_filter_drops_is_nobody(bench: Bench) -> None:
    hashed = "{endpointSelector: {matchLabels: {pod-template-hash: x}}, egress: [{}]}"
    assert bench.town(hashed).egress("outside") == "allow"
    named = hashed.replace("pod-template-hash: x", "app: server")
    assert bench.town(named).egress("outside") == "no rule"
    assert bench.town(named, kept=LabelFilter(("!app$",))).egress("outside") == "allow"


def test_2_2_an_operator_s_filter_decides_who_is_told_apart(bench: Bench) -> None:
    by_tier = "egress: [{toEndpoints: [{matchLabels: {tier: back}}]}]"
    assert bench.town(by_tier).egress("b") == "allow"
    assert bench.town(by_tier, kept=LabelFilter(("!tier",))).egress("b") == "no rule"
    assert bench.town(by_tier, kept=LabelFilter(("app",))).egress("b") == "no rule"


LOCALHOST = [
    ("3.8.1 let in by default", "ingress: [{}]", "n1", "allow"),
    ("3.8.4 not other nodes", "ingress: [{}]", "n2", "no rule"),
    ("3.8.2 an explicit deny of the host beats it", "ingressDeny: [{fromEntities: [host]}]", "n1", "deny"),
    ("3.8.2 an explicit deny of all beats it", "ingressDeny: [{fromEntities: [all]}]", "n1", "deny"),
    ("3.8.2 a deny of another does not", "ingressDeny: [{fromEntities: [world]}]", "n1", "allow"),
    ("3.8.3 HTTP rules do not restrict it", f"ingress: [{{{HTTP_A}}}]", "n1", "proxy, all allowed"),
]


@pytest.mark.parametrize(
    ("spec", "peer", "expected"), [row[1:] for row in LOCALHOST], ids=[row[0] for row in LOCALHOST]
)
def test_the_local_host(spec: str, peer: str, expected: str, bench: Bench) -> None:
    assert bench.town(spec).ingress(peer) == expected


def test_3_8_5_the_way_out_to_the_host_is_not_implied(bench: Bench) -> None:
    assert bench.town("egress: [{}]").egress("n1") == "no rule"
    assert bench.town("egress: [{toEntities: [host]}]").egress("n1", "n2") == "allow no rule"


ENTITIES = [
    ("3.6 host", "host", "n1"),
    ("3.6 remote-node, an API server's too", "remote-node", "n2 n3"),
    ("3.6 kube-apiserver on a node and outside", "kube-apiserver", "n3 apiserver"),
    ("3.6 world, an API server outside too", "world", "outside apiserver"),
    ("3.6 and 11.26 cluster, with an API server outside", "cluster", "n1 n2 n3 a b other/a apiserver 10.2.0.99"),
    ("3.6 unmanaged is a pod that we do not know", "unmanaged", "10.2.0.99"),
    ("3.6 all", "all", "n1 n2 n3 a b other/a outside apiserver 10.2.0.99"),
    ("3.6 none", "none", ""),
    ("3.6 health", "health", ""),
    ("3.6 init", "init", ""),
    ("3.6 ingress", "ingress", ""),
]


@pytest.mark.parametrize(("entity", "expected"), [row[1:] for row in ENTITIES], ids=[row[0] for row in ENTITIES])
def test_entities_in_a_town(entity: str, expected: str, bench: Bench) -> None:
    town = bench.town(f"egress: [{{toEntities: [{entity}]}}]")
    everyone = ("n1", "n2", "n3", "a", "b", "other/a", "outside", "apiserver", "10.2.0.99")
    assert " ".join(who for who in everyone if town.egress(who) == "allow") == expected


def test_an_api_server_outside_is_matched_by_its_cidr_as_well(bench: Bench) -> None:
    assert bench.town("egress: [{toCIDR: [198.51.100.0/24]}]").egress("apiserver", "n3") == "allow no rule"


@pytest.mark.parametrize("entity", ["world-ipv4", "world-ipv6"])
def test_3_6_13_with_one_family_in_use_the_world_of_either_is_the_world(entity: str, bench: Bench) -> None:
    town = bench.town(f"egress: [{{toEntities: [{entity}]}}]")
    assert town.egress("outside", "apiserver", "a", "n2") == "allow allow no rule no rule"
    town = bench.town(f"egressDeny: [{{toEntities: [{entity}]}}]", "egress: [{toEntities: [all]}]")
    assert town.egress("outside", "apiserver", "a", "n2") == "deny deny allow allow"


def test_3_6_13_with_both_in_use_each_is_its_own(bench: Bench) -> None:
    six = "- {apiVersion: v1, kind: Pod, metadata: {name: six}, spec: {nodeName: n1}, status: {podIP: 'fd00::6'}}"
    for entity, expected in (("world-ipv4", "allow no rule"), ("world-ipv6", "no rule allow")):
        assert (
            bench.town(f"egress: [{{toEntities: [{entity}]}}]", more=six).egress("outside", "2001:db8::1") == expected
        )


@pytest.mark.parametrize("everything", ["0.0.0.0/0", "::/0"])
def test_3_6_with_one_family_in_use_the_whole_of_either_is_the_world(everything: str, bench: Bench) -> None:
    named = "egress: [{toCIDR: [203.0.113.0/24], toPorts: [{ports: [{port: '1'}]}]}]"
    town = bench.town(f"egress: [{{toCIDR: ['{everything}']}}]", named)
    assert town.egress("outside", "192.0.2.50", "a", "n2") == "allow allow no rule no rule"
    assert bench.town(f"egressDeny: [{{toCIDR: ['{everything}']}}]", named).egress("outside") == "deny"


ALWAYS = [
    ("2.5 always: no policy at all", [], "a", "no rule", "no rule"),
    ("2.5 always: the local host gets in", [], "n1", "allow", "no rule"),
    ("2.5 always: what a policy allows", ["ingress: [{fromEndpoints: [{}]}]"], "a", "allow", "no rule"),
    ("2.5 always: what it does not", ["ingress: [{fromEndpoints: [{}]}]"], "outside", "no rule", "no rule"),
    (
        "2.5 always: a policy without default deny opens nothing",
        ["{ingressDeny: [{fromEntities: [world]}], enableDefaultDeny: {ingress: false}}"],
        "a",
        "no rule",
        "no rule",
    ),
]


@pytest.mark.parametrize(
    ("policies", "peer", "let_in", "let_out"), [row[1:] for row in ALWAYS], ids=[row[0] for row in ALWAYS]
)
def test_enforcement_mode_always(policies: list[str], peer: str, let_in: str, let_out: str, bench: Bench) -> None:
    town = bench.town(*policies, enforce_always=True)
    assert (town.ingress(peer), town.egress(peer)) == (let_in, let_out)


def test_2_5_the_mode_is_named_where_it_refuses(bench: Bench) -> None:
    reason = bench.town(enforce_always=True).port(Direction.EGRESS, "203.0.113.7").l4.reason
    assert reason.startswith("no rule of policy policy-enforcement-mode allows identity ")
    land = bench.town("egress: [{}]", enforce_always=True)
    assert land.port(Direction.EGRESS, "203.0.113.7").l4.reason.startswith(
        "no rule of policy default/p0, policy policy-enforcement-mode allows identity "
    )
