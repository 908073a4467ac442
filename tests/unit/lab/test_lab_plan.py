"""The plan: the same manifests give the same lab; placed pods keep their node; what cannot be placed is named."""

from __future__ import annotations

import pytest
import yaml

from l7proxy.errors import SourceError
from l7proxy.lab.cluster import Cluster
from l7proxy.lab.manifests import Manifest, parse
from l7proxy.lab.plan import Plan, merged, plan


def pod(name: str, spec: str = "{}", more: str = "") -> str:
    return f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {spec}\n{more}"


def manifests(*texts: str) -> list[Manifest]:
    return parse("\n---\n".join(texts), "test.yaml")


def planned(*texts: str, families: tuple[int, ...] = (4,)) -> Plan:
    return plan(manifests(*texts), families)


def places(cluster: Cluster) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {pod.name: (pod.node, pod.addresses) for pod in cluster.pods}


def test_without_nodes_there_are_two_and_pods_are_spread() -> None:
    result = planned(pod("a"), pod("b"), pod("c"))
    assert places(result.cluster) == {
        "a": ("node-1", ("10.244.1.10",)),
        "b": ("node-2", ("10.244.2.10",)),
        "c": ("node-1", ("10.244.1.11",)),
    }


def test_a_pod_says_where_it_wants_to_be_and_with_which_address() -> None:
    result = planned(pod("a", "{nodeName: node-2}", "status: {podIP: 10.244.2.77}"))
    assert places(result.cluster) == {"a": ("node-2", ("10.244.2.77",))}


def test_addresses_of_families_the_lab_has_not_are_replaced() -> None:
    result = planned(pod("a", "{nodeName: node-1}", "status: {podIP: 10.244.1.77}"), families=(6,))
    assert places(result.cluster) == {"a": ("node-1", ("fd00:10:244:1::a",))}


def test_the_answer_is_written_as_a_control_plane_would_write_it() -> None:
    service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}]}\n"
    written = {m.key.kind: m for m in planned(pod("a"), service, families=(4, 6)).manifests if m.key.name != "node-2"}
    assert written["Pod"].document["status"]["podIPs"] == [{"ip": "10.244.1.10"}, {"ip": "fd00:10:244:1::a"}]
    assert written["Pod"].document["spec"]["nodeName"] == "node-1"
    assert written["Node"].document["spec"]["podCIDRs"] == ["10.244.1.0/24", "fd00:10:244:1::/64"]
    assert written["Service"].document["spec"]["clusterIPs"] == ["10.96.0.10", "fd00:10:96::a"]
    assert written["Namespace"].document["metadata"]["labels"] == {"kubernetes.io/metadata.name": "default"}
    assert all(yaml.safe_load(m.text) == m.document for m in written.values())


def test_planning_what_was_planned_changes_nothing() -> None:
    once = planned(pod("a"), pod("b"), families=(4, 6))
    again = plan(once.manifests, (4, 6))
    assert again == once


def test_an_applied_pod_keeps_its_place() -> None:
    before = planned(pod("a"), pod("b"))
    stored = {m.key: m for m in before.manifests}
    after = plan(merged(stored, manifests(pod("b", "{containers: [{name: x, command: [sleep]}]}"), pod("c"))), (4,))
    assert places(after.cluster)["b"] == places(before.cluster)["b"]
    assert after.cluster.pods[1].containers[0].argv == ("sleep",)


def test_host_network_pods_have_their_nodes_address() -> None:
    result = planned(
        pod("a", "{hostNetwork: true, nodeName: node-2}"), pod("b", "{hostNetwork: true, nodeName: node-2}")
    )
    assert {address for _, address in places(result.cluster).values()} == {("172.18.0.12",)}


NODE = "apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\nspec: {{podCIDR: {}}}\n"


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([pod("a", "{nodeName: moon}")], "node 'moon' not found"),
        (
            [pod("a", more="status: {podIP: 10.244.1.9}"), pod("b", more="status: {podIP: 10.244.1.9}")],
            "have the same address",
        ),
        ([pod("a", "{nodeName: node-1}", "status: {podIP: 10.244.2.9}")], "10.244.2.9 is not in 10.244.1.0/24"),
        ([pod("a", more="status: {podIP: 300.1.1.1}")], "status.podIP"),
        ([NODE.format("a", "10.1.0.0/16"), NODE.format("b", "10.1.2.0/24")], "overlap"),
        ([NODE.format("a", "10.1.2.3/33")], "spec.podCIDR"),
        ([pod("a", "{initContainers: [{name: x}]}")], "init containers"),
        ([pod("a", "{containers: [{name: x}, {name: x}]}")], "duplicate container name"),
        ([pod("a", "{containers: [{name: ../x}]}")], "spec.containers[0].name"),
        (
            [pod("a", "{containers: [{name: x, command: sleep 1}]}")],
            "spec.containers[0].command: Pod default/a: must be",
        ),
        ([pod("a", "{containers: [{name: x, env: [{name: a, valueFrom: {}}]}]}")], "spec.containers[0].env"),
        ([pod("a", "[]")], "spec"),
        (
            ["apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n"],
            "kind: Deployment default/d: the lab has no",
        ),
        (["apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {type: NodePort}\n"], "spec.type"),
        ([pod("a", "{hostNetwork: 'yes'}")], "must be true or false, not a string"),
        (
            [pod("a", "{containers: [{name: x, ports: [{containerPort: 70000}]}]}")],
            "Pod default/a: must be a port from 1",
        ),
    ],
)
def test_what_cannot_be_placed_is_named(texts: list[str], said: str) -> None:
    with pytest.raises(SourceError) as caught:
        planned(*texts)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        ("http:80,h3:81", "h3:81 must be KIND:PORT"),
        ("gopher:70", "gopher:70 must be KIND:PORT"),
        ("http:0", "http:0 must be KIND:PORT"),
        ("http", "http must be KIND:PORT"),
    ],
)
def test_an_unknown_server_is_named(annotation: str, said: str) -> None:
    text = f'apiVersion: v1\nkind: Pod\nmetadata: {{name: a, annotations: {{lab.l7proxy.io/serve: "{annotation}"}}}}\n'
    with pytest.raises(SourceError) as caught:
        planned(text)
    assert said in str(caught.value)
    assert "metadata.annotations[lab.l7proxy.io/serve]" in str(caught.value)
