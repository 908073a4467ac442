"""What selectors select: label sources, set operators, and the namespace that is added implicitly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from l7proxy.model.labels import Label, LabelSet
from l7proxy.policy import lang

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

NS = "io.kubernetes.pod.namespace"
TEAM = "io.cilium.k8s.namespace.labels.team"
EVERYONE = ("a", "plain", "other/a", "third/a", "host", "remote-node", "health", "192.0.2.1")

PEERS = [
    ("2.3.2 a peer without a namespace is of the policy's", "matchLabels: {app: a}", "a"),
    ("2.3.3 a namespace in the labels is as written", f"matchLabels: {{{NS}: other}}", "other/a"),
    ("2.3.3 a k8s: namespace is as written", f"matchLabels: {{'k8s:{NS}': other}}", "other/a"),
    ("2.3.3 an any: namespace is as written", f"matchLabels: {{'any:{NS}': other}}", "other/a"),
    (
        "2.3.3 namespaces in an expression are as written",
        f"matchExpressions: [{{key: {NS}, operator: In, values: [other, third]}}]",
        "other/a third/a",
    ),
    (
        "2.3.3 a namespace that is not some other are pods only",
        f"matchExpressions: [{{key: {NS}, operator: NotIn, values: [other]}}]",
        "a plain third/a",
    ),
    ("2.3.3 no namespace at all are no pods", f"matchExpressions: [{{key: {NS}, operator: DoesNotExist}}]", ""),
    ("2.3.4 a label of the namespace is as written", f"matchLabels: {{'{TEAM}': third-team}}", "third/a"),
    ("2.3.4 a k8s: label of the namespace is as written", f"matchLabels: {{'k8s:{TEAM}': third-team}}", "third/a"),
    ("2.3.5 a reserved label leaves the selector alone", "matchLabels: {'reserved:remote-node': ''}", "remote-node"),
    ("2.1.3 a dollar is short for reserved", "matchLabels: {$health: ''}", "health"),
    (
        "2.3.5 whoever lacks a reserved label, pod or not",
        "matchExpressions: [{key: 'reserved:host', operator: DoesNotExist}]",
        "a plain other/a third/a remote-node health 192.0.2.1",
    ),
    ("2.1.6 In needs the label", "matchExpressions: [{key: app, operator: In, values: [a, b]}]", "a"),
    ("2.1.6 NotIn holds without the label", "matchExpressions: [{key: app, operator: NotIn, values: [a]}]", "plain"),
    ("2.1.6 Exists", "matchExpressions: [{key: app, operator: Exists}]", "a"),
    ("2.1.6 DoesNotExist", "matchExpressions: [{key: app, operator: DoesNotExist}]", "plain"),
    ("2.1.6 values are compared by case", "matchLabels: {app: A}", ""),
    (
        "2.1.6 labels and expressions are both needed",
        "{matchLabels: {app: a}, matchExpressions: [{key: app, operator: NotIn, values: [a]}]}",
        "",
    ),
    ("2.1.2 a source that pods do not have", "matchLabels: {'container:app': a}", ""),
]


@pytest.mark.parametrize(("selector", "expected"), [row[1:] for row in PEERS], ids=[row[0] for row in PEERS])
def test_a_peer_selector(selector: str, expected: str, bench: Bench) -> None:
    if not selector.startswith("{"):
        selector = f"{{{selector}}}"
    land = bench.enforce(f"ingress: [{{fromEndpoints: [{selector}]}}]")
    matched = [each for each in EVERYONE if land.port(each).l4.ref == land.rules[0].ref]
    assert matched == expected.split()


CLUSTER_WIDE = [
    ("2.3.6 without a namespace it is pods anywhere", "{matchLabels: {app: a}}", "a other/a third/a"),
    ("2.3.6 the empty selector is all pods, not everyone", "{}", "a plain other/a third/a"),
    ("2.3.6 a namespace is as written", f"{{matchLabels: {{{NS}: other}}}}", "other/a"),
    ("2.3.5 a reserved label leaves it alone", "{matchLabels: {'reserved:health': ''}}", "health"),
]


@pytest.mark.parametrize(
    ("selector", "expected"), [row[1:] for row in CLUSTER_WIDE], ids=[row[0] for row in CLUSTER_WIDE]
)
def test_a_peer_selector_of_a_cluster_wide_policy(selector: str, expected: str, bench: Bench) -> None:
    land = bench.enforce(bench.ccnp(f"ingress: [{{fromEndpoints: [{selector}]}}]"))
    assert [each for each in EVERYONE if land.port(each).l4.ref == land.rules[0].ref] == expected.split()


def test_2_3_6_the_peers_of_pods_without_labels_may_be_anyone(bench: Bench) -> None:
    document = bench.ccnp("ingress: [{fromEndpoints: [{}]}]")
    document["spec"]["endpointSelector"] = {"matchLabels": {"reserved:init": ""}}
    (rule,) = lang.parse(document)
    assert [str(peer.selector) for peer in rule.peers or () if hasattr(peer, "selector")] == ["everything"]


def labels(*texts: str) -> LabelSet:
    parts = [text.replace("=", ":", 1).split(":", 2) for text in texts]
    return LabelSet.of(Label(source, key, value) for source, key, value in parts)


SUBJECTS = [
    ("2.3.1 the empty selector is its namespace", "{}", True),
    ("2.3.1 another namespace in the labels is overwritten", f"{{matchLabels: {{{NS}: other}}}}", True),
    ("2.3.1 another k8s: namespace is overwritten", f"{{matchLabels: {{'k8s:{NS}': other}}}}", True),
    (
        "2.3.1 another namespace in an expression is overwritten",
        f"{{matchExpressions: [{{key: {NS}, operator: In, values: [other]}}]}}",
        True,
    ),
    (
        "2.3.1 its namespace among others",
        f"{{matchExpressions: [{{key: {NS}, operator: In, values: [other, default]}}]}}",
        True,
    ),
    (
        "2.3.1 anyone outside its namespace is nobody",
        f"{{matchExpressions: [{{key: {NS}, operator: NotIn, values: [default]}}]}}",
        False,
    ),
    ("2.3.1 no namespace at all is nobody", f"{{matchExpressions: [{{key: {NS}, operator: DoesNotExist}}]}}", False),
    ("2.3.1 reserved labels are nobody", "{matchLabels: {'reserved:host': ''}}", False),
]


@pytest.mark.parametrize(("selector", "own"), [row[1:] for row in SUBJECTS], ids=[row[0] for row in SUBJECTS])
def test_the_subject_of_a_policy_never_leaves_its_namespace(selector: str, own: bool, bench: Bench) -> None:
    (rule,) = lang.parse(bench.cnp(f"{{endpointSelector: {selector}, ingress: [{{}}]}}"))
    pod = f"k8s:{NS}="
    assert rule.subject.matches(labels(f"{pod}default", "k8s:app=x")) is own
    for foreign in (
        labels(f"{pod}other"),
        labels("reserved:host="),
        labels("reserved:world="),
        labels(f"any:{NS}=default"),
    ):
        assert not rule.subject.matches(foreign)


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (
            f"{{matchLabels: {{{NS}: other}}}}",
            'selects only in the namespace of the policy, "default": the given one is ignored',
        ),
        ("{matchLabels: {'reserved:host': ''}}", "selects nothing: pods have no reserved labels"),
    ],
)
def test_a_subject_that_is_not_as_written_is_noted(selector: str, message: str, bench: Bench) -> None:
    (note,) = lang.notes(bench.cnp(f"{{endpointSelector: {selector}, ingress: [{{}}]}}"))
    assert (note.at, note.message) == ("spec.endpointSelector", message)


def test_2_3_7_and_11_68_the_subject_of_a_cluster_wide_policy_is_everyone(bench: Bench) -> None:
    document = bench.ccnp("ingress: [{}]")
    document["spec"]["endpointSelector"] = {}
    (rule,) = lang.parse(document)
    for endpoint in (
        labels("reserved:health="),
        labels("reserved:ingress="),
        labels(f"k8s:{NS}=x"),
        labels("k8s:app=a"),
    ):
        assert rule.subject.matches(endpoint)


def test_2_4_selectors_that_say_the_same_are_equal(bench: Bench) -> None:
    one = lang.parse(bench.cnp("ingress: [{fromEndpoints: [{matchLabels: {app: a, v: '1'}}]}]"))
    expression = "{matchLabels: {v: '1'}, matchExpressions: [{key: app, operator: In, values: [a, a]}]}"
    two = lang.parse(bench.cnp(f"ingress: [{{fromEndpoints: [{expression}]}}]"))
    assert one == two
