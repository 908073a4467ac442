"""References of Calico policies are added, changed and deleted: the next view is the same as after a fresh start."""

from __future__ import annotations

from dataclasses import replace

from l7proxy.model.resources import (
    Delete,
    EndpointSlice,
    Namespace,
    NetworkSet,
    Pod,
    PolicyTier,
    Service,
    ServiceAccount,
    ServicePort,
    SlicePort,
    Upsert,
)
from l7proxy.policy import lang
from l7proxy.policy.references import References, unknown
from tests.unit.policy.town import Town, pod


def policy(spec: str) -> str:
    return f"""
    apiVersion: projectcalico.org/v3
    kind: NetworkPolicy
    metadata: {{name: p, namespace: x}}
    spec: {{selector: pod == 'a', {spec}}}
"""


def test_a_network_set_comes_changes_and_goes() -> None:
    town = Town(policy("ingress: [{action: Allow, source: {selector: kind == 'good'}}]"))
    assert not town.allows("8.8.8.8", "x/a")
    one = NetworkSet("x", "set", ("8.8.8.0/24",), {"kind": "good"})
    town.change(Upsert(one))
    assert town.allows("8.8.8.8", "x/a") and not town.allows("z/a", "x/a")
    town.change(Upsert(NetworkSet("x", "set", ("10.0.2.0/24",), {"kind": "good"})))
    assert not town.allows("8.8.8.8", "x/a") and town.allows("z/a", "x/a")
    town.change(Upsert(NetworkSet("x", "set", ("10.0.2.0/24",), {"kind": "bad"})))
    assert not town.allows("z/a", "x/a")
    town.change(Upsert(one), Delete(one.key))
    assert not town.allows("8.8.8.8", "x/a")


def test_a_network_set_follows_the_labels_of_its_namespace() -> None:
    rule = "ingress: [{action: Allow, source: {selector: has(kind), namespaceSelector: mood == 'good'}}]"
    town = Town(policy(rule), more=[NetworkSet("y", "set", ("8.8.8.0/24",), {"kind": "k"})])
    assert not town.allows("8.8.8.8", "x/a")
    town.change(Upsert(Namespace("y", {"ns": "y", "mood": "good"})))
    assert town.allows("8.8.8.8", "x/a")


def test_a_tier_comes_and_moves() -> None:
    late = policy("tier: team, ingress: [{action: Deny, protocol: UDP}, {action: Pass}]")
    kubernetes = """
    apiVersion: networking.k8s.io/v1
    kind: NetworkPolicy
    metadata: {name: knp, namespace: x}
    spec: {podSelector: {}, ingress: [{}]}
"""
    town = Town(late, kubernetes)
    assert town.states["p"].startswith("refused") and not town.allows("y/a", "x/a")
    town.change(Upsert(PolicyTier("team", 50.0)))
    assert town.states["p"] == "accepted"
    assert town.allows("y/a", "x/a") and not town.allows("y/a", "x/a", "80/UDP")
    town.change(Upsert(PolicyTier("team", 5e6)))
    assert town.allows("y/a", "x/a", "80/UDP"), "the default tier has allowed it"
    town.change(Delete(PolicyTier("team", 5e6).key))
    assert town.states["p"].startswith("refused") and not town.allows("y/a", "x/a")


def test_an_account_gets_and_loses_its_label() -> None:
    town = Town(policy("ingress: [{action: Allow, source: {serviceAccounts: {selector: role == 'ci'}}}]"))
    assert not town.allows("x/b", "x/a")
    town.change(Upsert(ServiceAccount("x", "b", {"role": "ci"})))
    assert town.allows("x/b", "x/a") and not town.allows("x/c", "x/a")
    town.change(Upsert(ServiceAccount("x", "b", {})))
    assert not town.allows("x/b", "x/a")


def test_a_label_that_cilium_keeps_out_of_identities_counts_while_a_policy_asks_for_it() -> None:
    town = Town(policy("ingress: [{action: Allow, source: {selector: pod-template-hash == '7'}}]"))
    town.change(Upsert(pod("x/b", **{"pod-template-hash": "7"})), Upsert(pod("x/c", **{"pod-template-hash": "8"})))
    assert town.allows("x/b", "x/a") and not town.allows("x/c", "x/a")
    town.change(Upsert(Town.document(policy("ingress: [{action: Deny}]"))))
    numbers = {one.identity for one in town.view("n1").endpoints if one.name in ("b", "c") and one.namespace == "x"}
    assert len(numbers) == 2, "their names are labels of the town, so they stay two"
    assert not any(
        "pod-template-hash" in text for one in town.view("n1").identities.values() for text in one.labels.text
    )


def test_a_service_gets_another_backend() -> None:
    town = Town(policy("types: [Egress], egress: [{action: Allow, destination: {services: {name: web}}}]"))
    assert not town.allows("x/a", "x/b")
    town.change(Upsert(EndpointSlice("x", "web-1", "web", ("10.0.1.12",), (SlicePort("w", 80, 6),))))
    assert town.allows("x/a", "x/b") and not town.allows("x/a", "x/c")
    town.change(Upsert(EndpointSlice("x", "web-1", "web", ("10.0.1.13",), (SlicePort("w", 81, 6),))))
    assert not town.allows("x/a", "x/b") and town.allows("x/a", "x/c", "81/TCP") and not town.allows("x/a", "x/c")


SELECTING = Service("x", "web", ("10.96.0.1",), (ServicePort(8080, 6, "http", "w"),), {"role": "web"})


def test_a_service_without_slices_means_the_pods_that_it_selects() -> None:
    town = Town(policy("types: [Egress], egress: [{action: Allow, destination: {services: {name: web}}}]"))
    town.change(Upsert(SELECTING), Upsert(web_pod("x/b", 80)), Upsert(web_pod("x/c", 81)), Upsert(web_pod("y/b", 80)))
    assert town.allows("x/a", "x/b") and town.allows("x/a", "x/c", "81/TCP")
    assert not town.allows("x/a", "x/b", "81/TCP") and not town.allows("x/a", "x/b", "80/UDP")
    assert not town.allows("x/a", "y/b"), "a Service selects in its own namespace"
    town.change(Upsert(pod("x/b")), Upsert(pod("x/c")))
    assert not town.allows("x/a", "x/b") and not town.allows("x/a", "x/c", "81/TCP")


def test_slices_are_believed_where_a_service_has_any() -> None:
    town = Town(policy("types: [Egress], egress: [{action: Allow, destination: {services: {name: web}}}]"))
    one = EndpointSlice("x", "web-1", "web", ("10.0.1.13",), (SlicePort("w", 80, 6),))
    town.change(Upsert(SELECTING), Upsert(web_pod("x/b", 80)), Upsert(one))
    assert town.allows("x/a", "x/c") and not town.allows("x/a", "x/b")
    town.change(Delete(one.key))
    assert town.allows("x/a", "x/b") and not town.allows("x/a", "x/c")
    town.change(Upsert(replace(SELECTING, selector={})))
    assert not town.allows("x/a", "x/b"), "without a selector its endpoints are somebody else's to name"


def test_a_service_without_slices_is_a_source_on_any_port() -> None:
    town = Town(policy("ingress: [{action: Allow, source: {services: {name: web}}}]"))
    town.change(Upsert(SELECTING), Upsert(web_pod("x/b", 80)))
    assert town.allows("x/b", "x/a", "99/TCP") and not town.allows("x/c", "x/a", "99/TCP")


def web_pod(who: str, port: int) -> Pod:
    return replace(pod(who, role="web"), named_ports=frozenset({("http", 6, port)}))


def test_a_service_that_nobody_has_is_told() -> None:
    rules = lang.parse(
        Town.document(
            policy("types: [Egress], egress: [{action: Allow, destination: {services: {name: web}}}]")
        ).document
    )
    assert [name for _, name in unknown(rules, References())] == ["Service x/web with endpoints"]
    web = EndpointSlice("x", "web-1", "web", ("10.0.1.12",), (SlicePort("w", 80, 6),))
    assert not list(unknown(rules, References(slices=(web,))))


def test_a_service_is_meant_in_the_protocol_that_the_rule_names() -> None:
    rule = "types: [Egress], egress: [{action: Allow, protocol: UDP, destination: {services: {name: web}}}]"
    both = (SlicePort("w", 80, 6), SlicePort("d", 80, 17))
    town = Town(policy(rule), more=[EndpointSlice("x", "web-1", "web", ("10.0.1.12",), both)])
    assert town.allows("x/a", "x/b", "80/UDP")
    assert not town.allows("x/a", "x/b", "80/TCP")
