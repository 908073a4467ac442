"""Recorded flows judged by other policies: what changes, why, and what cannot be told from a flow."""

from __future__ import annotations

from typing import Any

import pytest

from l7proxy.learn.observation import observe
from l7proxy.model.resources import Upsert
from l7proxy.settings.read import load
from l7proxy.simulate import replay
from l7proxy.simulate.recorded import Judge
from l7proxy.simulate.replay import Result
from l7proxy.sources.files.manifest import parse
from tests.support.seen_flows import made, pod, read, reserved

FRONT, BACK = pod("front"), pod("back")
WORLD = reserved("world")


def policy(ingress: str = "", egress: str = "", subject: str = "back", more: str = "") -> str:
    rules = "".join(f"\n  {name}: [{text}]" for name, text in (("ingress", ingress), ("egress", egress)) if text)
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: p, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: {subject}}}}}{rules}
---
{more}"""


def result(text: str, *flows: dict[str, Any], queries_recorded: bool = True) -> Result:
    read_text = parse(text.encode(), "new.yaml")
    assert not read_text.faults
    seen = replay.Flows()
    seen.add_all(map(observe, read(*flows)))
    changes = [Upsert(one) for one in read_text.resources]
    return replay.replay(seen, Judge(changes, load(None, environment={}), queries_recorded=queries_recorded))


def verdict(text: str, *flows: dict[str, Any], queries_recorded: bool = True) -> str:
    """`denied: WHY`, `allowed: WHY`, `unjudged: WHY` or `same`, of the only kind of flow."""
    found = result(text, *flows, queries_recorded=queries_recorded)
    said = [f"{one.would}: {one.reason}" for one in found.changes] + [f"unjudged: {one.why}" for one in found.unjudged]
    assert len(said) <= 1
    return said[0] if said else "same"


def on_80(http: str = "", peer: str = "fromEndpoints: [{matchLabels: {app: front}}]") -> str:
    rules = f", rules: {{http: [{http}]}}" if http else ""
    return f"{{{peer}, toPorts: [{{ports: [{{port: '80', protocol: TCP}}]{rules}}}]}}"


GET_X = made(FRONT, BACK, http="GET http://back/x")


@pytest.mark.parametrize(
    ("new", "flow", "expected"),
    [
        (policy(on_80()), made(FRONT, BACK), "same"),
        (policy(on_80()), made(FRONT, BACK, 81), "denied: no rule of policy default/p allows"),
        (policy(on_80()), made(pod("other"), BACK), "denied: no rule"),
        (policy(on_80()), made(FRONT, BACK, verdict="DROPPED"), "allowed: allowed by CiliumNetworkPolicy default/p"),
        (policy(on_80()), made(FRONT, pod("third"), verdict="DROPPED"), "allowed: no policy applies"),
        (policy(on_80("{path: /x}")), GET_X, "same"),
        (policy(on_80("{path: /y}")), GET_X, "denied: no rule matched; nearest: policy default/p rule 1, path"),
        (policy(on_80("{host: back}")), GET_X, "same"),
        (policy(on_80("{host: other}")), GET_X, "denied"),
        (policy(on_80("{path: /x}")), made(FRONT, BACK, verdict="REDIRECTED"), "same"),
        (policy(on_80("{path: /x}")), made(FRONT, BACK), "unjudged: HTTP rules would apply, and the requests"),
        (policy(on_80("{headers: ['X-Token: a']}")), GET_X, "unjudged: depends on what flows do not record: header x-"),
        (policy(on_80("{path: /y, headers: ['X-Token: a']}")), GET_X, "denied"),
        (policy(on_80("{path: /x}, {headers: ['X-Token: a']}")), GET_X, "same"),
        (policy("{fromEndpoints: [{}], toPorts: [{ports: [{port: web, protocol: TCP}]}]}"), made(FRONT, BACK),
         "unjudged: depends on what flows do not record: port web"),
        (policy(egress="{toEndpoints: [{matchLabels: {app: back}}]}", subject="front"), made(FRONT, BACK), "same"),
        (policy(egress="{toEntities: [host]}", subject="front"), made(FRONT, BACK), "denied"),
        (policy(egress="{toEntities: [kube-apiserver]}", subject="front"),
         made(FRONT, reserved("host", "kube-apiserver"), 6443, direction="EGRESS"), "same"),
        (policy(egress="{toEntities: [remote-node]}", subject="front"),
         made(FRONT, reserved("host", "kube-apiserver"), 6443, direction="EGRESS"), "denied"),
        (policy(egress="{toEntities: [kube-apiserver]}", subject="front"),
         made(FRONT, reserved("kube-apiserver", "world"), 443, direction="EGRESS", addresses=("10.0.0.1", "192.0.2.1")),
         "same"),
        (policy(egress="{toCIDR: [203.0.113.0/24]}", subject="front"),
         made(FRONT, WORLD, 443, direction="EGRESS", addresses=("10.0.0.1", "203.0.113.9")), "same"),
        (policy(egress="{toCIDR: [203.0.113.0/24]}", subject="front"),
         made(FRONT, WORLD, 443, direction="EGRESS", addresses=("10.0.0.1", "198.51.100.9")), "denied"),
        (policy(egress="{toCIDR: ['2001:db8::/32']}", subject="front"),
         made(FRONT, WORLD, 443, direction="EGRESS", addresses=("fd00::1", "2001:db8::9")), "same"),
        (policy(egress="{toEntities: [world]}", subject="front"),
         made(FRONT, WORLD, 443, direction="EGRESS", addresses=("10.0.0.1", "")), "unjudged: the address of the dest"),
        (policy(egress="{toServices: [{k8sService: {serviceName: s, namespace: n}}]}", subject="front"),
         made(FRONT, BACK, direction="EGRESS"), "unjudged: depends on what flows do not record: Service n/s"),
        (policy("{fromEndpoints: [{matchLabels: {app: back}}]}"), made(BACK, BACK), "same"),
        (policy("{fromEndpoints: [{matchLabels: {app: front}}]}"), made(BACK, BACK), "denied"),
        (policy(on_80()), made({"identity": 77, "namespace": "default", "pod_name": "x"}, BACK),
         "unjudged: the labels of the source are not recorded"),
        (policy(on_80()), made(pod("front", cluster="far"), BACK), "unjudged: the destination is in another cluster"),
        (policy(on_80("{path: /x}")), made(FRONT, BACK, http="GET http://back/x;y"), "unjudged: a worker would refuse"),
        (policy(on_80("{path: /x}")), made(FRONT, BACK, http="GET http://back/" + "x" * 99 + "…"),
         "unjudged: the URL of the request is not recorded whole"),
        (policy("{fromEndpoints: [{}], icmps: [{fields: [{type: 8}]}]}"), made(FRONT, BACK, 8, protocol="ICMPv4"),
         "same"),
        (policy(on_80()), made(FRONT, BACK, 8, protocol="ICMPv4"), "denied"),
    ],
)  # fmt: skip
def test_verdicts(new: str, flow: dict[str, Any], expected: str) -> None:
    assert verdict(new, flow).startswith(expected)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/x", "/x", "unjudged: the query of the request is not recorded"),
        (r"/x(\?.*)?", "/x", "same"),
        (r"/x(\?.*)?", "/y", "denied"),
        (r"/x\?a=1", "/x", "unjudged: the query of the request is not recorded, and a rule asks for one"),
        ("/x", "/x?a=1", "denied"),
        ("/x.*", "/x", "same"),
        ("/y", "/x", "denied"),
    ],
)
def test_queries_that_are_not_recorded(pattern: str, path: str, expected: str) -> None:
    flow = made(FRONT, BACK, http=f"GET http://back{path}")
    new = policy(on_80(f"{{path: '{pattern}'}}"))
    assert verdict(new, flow, queries_recorded=False).startswith(expected)


def test_a_connection_whose_requests_are_recorded_is_judged_by_them() -> None:
    new = policy(on_80("{path: /y}"))
    found = result(new, made(FRONT, BACK), GET_X)
    assert [(one.request, one.count) for one in found.changes] == [("GET /x", 1)]
    assert (found.unchanged, found.unjudged) == (1, ())


def test_what_was_let_out_may_have_been_refused_at_its_destination() -> None:
    let_out = made(FRONT, BACK, direction="EGRESS", emitter={"name": "Hubble"})
    new = policy(on_80(peer="fromEndpoints: [{matchLabels: {app: other}}]"))
    assert verdict(new, let_out).startswith("unjudged: the verdict of the destination is not in this flow")
    found = result(new, let_out, made(FRONT, BACK, emitter={"name": "Hubble"}))
    assert [one.count for one in found.changes] == [1]
    assert (found.unchanged, found.unjudged) == (1, ())


def test_addresses_of_pods_count_where_rules_name_them() -> None:
    new = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: default}
spec:
  podSelector: {matchLabels: {app: back}}
  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/28}}]}]
"""
    assert verdict(new, made(FRONT, BACK, addresses=("10.0.0.1", "10.0.1.1"))) == "same"
    assert verdict(new, made(FRONT, BACK, addresses=("10.0.0.99", "10.0.1.1"))).startswith("denied")
    reused = made(pod("other"), BACK, addresses=("10.0.0.1", "10.0.1.1"))
    found = result(new, made(FRONT, BACK, addresses=("10.0.0.1", "10.0.1.1")), reused)
    assert [one.why for one in found.unjudged] == ["the address of the source belonged to pods with different labels"]


def test_a_pod_is_one_at_both_ends_of_flows() -> None:
    new = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: default}
spec:
  podSelector: {matchLabels: {app: back}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/28}}]}]
"""
    there = made(FRONT, BACK, addresses=("10.0.0.1", "10.0.1.1"))
    back = made(BACK, FRONT, direction="EGRESS", addresses=("10.0.1.1", "10.0.0.1"))
    assert result(new, there, back).changes == ()


def test_namespace_labels_of_the_flow_count() -> None:
    far = pod("front", "far")
    far["labels"].append("k8s:io.cilium.k8s.namespace.labels.team=blue")
    new = policy(on_80(peer="fromEndpoints: [{matchLabels: {k8s:io.cilium.k8s.namespace.labels.team: blue}}]"))
    assert verdict(new, made(far, BACK)) == "same"
    assert verdict(new, made(pod("front", "far"), BACK)).startswith("denied")


def test_refusing_a_connection_of_which_every_request_was_refused_changes_nothing() -> None:
    connection, refused = (
        made(FRONT, BACK, verdict="REDIRECTED"),
        made(FRONT, BACK, http="GET http://back/admin", verdict="DROPPED"),
    )
    new = policy(on_80(peer="fromEndpoints: [{matchLabels: {app: other}}]"))
    assert verdict(new, connection, refused) == "same"
    assert [one.count for one in result(new, connection, refused, GET_X).changes] == [1, 1]
    assert verdict(new, connection).startswith("denied")


def test_audit_is_not_a_refusal_but_a_change() -> None:
    audited = policy(on_80()).replace(
        "namespace: default", 'namespace: default, annotations: {l7proxy.io/audit: "true"}'
    )
    assert verdict(audited, made(FRONT, BACK, 81)).startswith("audited: no rule of policy default/p allows")
    assert verdict(audited, made(FRONT, BACK, 81, verdict="AUDIT")) == "same"
    assert verdict(policy(on_80()), made(FRONT, BACK, verdict="AUDIT")) == "same"
    assert verdict(policy(on_80()), made(FRONT, BACK, 81, verdict="AUDIT")).startswith("denied")


def test_equal_flows_are_counted() -> None:
    found = result(policy(on_80()), *(made(FRONT, BACK, 81, source_port=port) for port in range(40000, 40005)))
    assert [one.count for one in found.changes] == [5]
    assert list(replay.pairs(found.changes)) == [("default/front", "default/back", "81/TCP", "denied", 5)]
