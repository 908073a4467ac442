"""The fields of a Cilium policy, row by row: the meaning of each, from manifests to verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from l7proxy.cluster.policy_status import PolicyPhase
from l7proxy.errors import PolicyError
from l7proxy.policy import lang
from l7proxy.policy.compile import Compiler
from l7proxy.policy.lang import Options
from l7proxy.policy.rules import Rule

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

EVERYONE = ("n1", "n2", "n3", "a", "b", "other/a", "outside", "apiserver", "10.2.0.99")
P80 = "toPorts: [{ports: [{port: '80', protocol: TCP}]}]"


def met(way: str, spec: str, bench: Bench, port: str = "80/TCP") -> str:
    """The peers that rules of this direction allow; the local host is always allowed."""
    town = bench.town(spec, options=Options(node_selectors=True))
    asked = town.ingress if way == "ingress" else town.egress
    return " ".join(who for who in EVERYONE if asked(who, port=port) == "allow")


# --- 1.1 the envelope


@pytest.mark.parametrize("version", ["cilium.io/v1", "cilium.io/v2alpha1", "cilium.io/v3"])
def test_1_1_1_other_versions_are_refused_by_name(version: str, bench: Bench) -> None:
    document = {**bench.cnp("ingress: [{fromEntities: [all]}]"), "apiVersion": version}
    town = bench.town(document)
    (state,) = town.view.policies
    assert (state.state, town.ingress("a")) == (PolicyPhase.REFUSED, "deny")
    assert state.reason == "apiVersion: CiliumNetworkPolicy is supported in version v2 only"


def test_1_1_1_a_cluster_wide_policy_has_no_namespace(bench: Bench) -> None:
    document = bench.ccnp("ingress: [{}]")
    document["metadata"]["namespace"] = "default"
    with pytest.raises(PolicyError, match="CiliumClusterwideNetworkPolicy is cluster-wide and has no namespace"):
        lang.parse(document)


def test_1_1_2_spec_and_specs_are_as_if_separate_policies_of_one_name(bench: Bench) -> None:
    document = bench.cnp("ingress: [{fromEndpoints: [{matchLabels: {app: a}}]}]")
    document["specs"] = [bench.cnp("ingress: [{fromEntities: [world]}]")["spec"]]
    town = bench.town(document)
    assert town.ingress("a", "outside", "b") == "allow allow no rule"
    assert {(rule.ref.name, rule.ref.rule) for rule in town.view.rules} == {
        ("p", "spec.ingress[0]"),
        ("p", "specs[0].ingress[0]"),
    }


def test_1_1_5_one_bad_entry_of_specs_rejects_the_whole_object(bench: Bench) -> None:
    document = bench.cnp("ingress: [{fromEntities: [all]}]")
    document["specs"] = [{**document["spec"], "ingress": [{"fromEntities": ["moon"]}]}]
    assert [str(fault) for fault in lang.faults(document)] == [
        "specs[0].ingress[0].fromEntities[0]: unsupported entity: moon"
    ]
    with pytest.raises(PolicyError):
        lang.parse(document)


def test_1_1_7_no_namespace_is_default(bench: Bench) -> None:
    document = bench.cnp("ingress: [{fromEndpoints: [{}]}]")
    del document["metadata"]["namespace"]
    town = bench.town(document)
    assert town.ingress("a", "other/a") == "allow no rule"
    assert {rule.ref.namespace for rule in town.view.rules} == {"default"}


# --- 1.2 the fields of a rule


def test_1_2_1_and_2_4_1_the_empty_subject_is_everyone_in_scope(bench: Bench) -> None:
    (one,) = lang.parse(bench.cnp("{endpointSelector: {}, ingress: [{}]}"))
    wide = bench.ccnp("ingress: [{}]")
    wide["spec"]["endpointSelector"] = {}
    (all_,) = lang.parse(wide)
    pods = [bench.pod(1, "default", app="x").labels, bench.pod(2, "other", app="x").labels]
    assert [one.subject.matches(pod) for pod in pods] == [True, False]
    assert [all_.subject.matches(pod) for pod in pods] == [True, True]


def test_1_2_4_deny_lists_deny(bench: Bench) -> None:
    town = bench.town("{ingressDeny: [{fromEntities: [world]}], egressDeny: [{toEntities: [world]}]}")
    assert (town.ingress("outside"), town.egress("outside")) == ("deny", "deny")


@pytest.mark.parametrize("more", ["labels: ['k8s:a=b', 'unspec:x']", "description: 'ingress: allow all'"])
def test_1_2_6_and_7_labels_and_description_mean_nothing(more: str, bench: Bench) -> None:
    def meant(spec: str) -> list[tuple[object, ...]]:
        return [(rule.subject, rule.peers, rule.ports, rule.action) for rule in lang.parse(bench.cnp(spec))]

    assert meant(f"{{ingress: [{{fromEndpoints: [{{}}]}}], {more}}}") == meant("ingress: [{fromEndpoints: [{}]}]")


@pytest.mark.parametrize("name", ["order", "tier", "priority"])
def test_1_2_9_nothing_orders_cilium_s_policies(name: str, bench: Bench) -> None:
    with pytest.raises(PolicyError, match=f'unknown field "{name}"'):
        lang.parse(bench.cnp(f"{{ingress: [{{}}], {name}: 1}}"))
    levels = {rule.level for rule in (*lang.parse(bench.cnp("ingress: [{}]")), *lang.parse(bench.ccnp("egress: [{}]")))}
    assert len(levels) == 1


# --- 1.3 and 1.4 peers, the same from and to

A, B = "{matchLabels: {app: a}}", "{matchLabels: {app: b}}"
PEERS = [
    ("1.3.1 endpoints are one or the other", f"Endpoints: [{A}, {B}]", "a b"),
    ("1.3.3 a prefix", "CIDR: [203.0.113.0/24, 198.51.100.9/32]", "outside apiserver"),
    ("1.3.4 a prefix but for a part of it", "CIDRSet: [{cidr: 192.0.0.0/2, except: [203.0.113.0/29]}]", "apiserver"),
    ("1.3.4 a group of prefixes", "CIDRSet: [{cidrGroupRef: partners}]", "outside apiserver"),
    ("1.3.4 groups by label", "CIDRSet: [{cidrGroupSelector: {matchLabels: {trust: some}}}]", "outside apiserver"),
    ("1.3.5 entities are one or the other", "Entities: [remote-node, world]", "n2 n3 outside apiserver"),
    ("1.3.6 nodes", "Nodes: [{matchLabels: {zone: west}}]", "n2"),
]


@pytest.mark.parametrize(("peers", "expected"), [row[1:] for row in PEERS], ids=[row[0] for row in PEERS])
def test_peers(peers: str, expected: str, bench: Bench) -> None:
    assert met("ingress", f"ingress: [{{from{peers}}}]", bench) == f"n1 {expected}".strip()
    assert met("egress", f"egress: [{{to{peers}}}]", bench) == expected


def test_1_3_7_a_group_of_a_cloud_is_nobody_and_said_to_be(bench: Bench) -> None:
    town = bench.town("ingress: [{fromGroups: [{aws: {region: x, securityGroupsIds: [sg-1]}}]}]")
    assert town.ingress("a", "outside") == "no rule no rule"
    assert town.view.policies[0].reason == "spec.ingress[0].fromGroups: " + (
        "is not supported: cloud provider groups match no peer"
    )


KINDS = ("Endpoints: [{}]", "CIDR: [10.0.0.0/8]", "CIDRSet: [{cidr: 10.0.0.0/8}]", "Entities: [all]", "Nodes: [{}]")
ONLY_TO = ("Services: [{k8sService: {serviceName: s}}]", "FQDNs: [{matchName: a.b}]")
PAIRS = [
    (f"{side}{one}", f"{side}{two}", way)
    for side, way, kinds in (("from", "ingress", KINDS), ("to", "egress", (*KINDS, *ONLY_TO)))
    for place, one in enumerate(kinds)
    for two in kinds[place + 1 :]
]


@pytest.mark.parametrize(
    ("one", "two", "way"), PAIRS, ids=[f"1.6.4 {one.split(':')[0]} {two.split(':')[0]}" for one, two, _ in PAIRS]
)
def test_only_one_kind_of_peer_in_an_item(one: str, two: str, way: str, bench: Bench) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse(bench.cnp(f"{way}: [{{{one}, {two}}}]"), options=Options(node_selectors=True))
    first, second = (text.split(":")[0] for text in (one, two))
    assert caught.value.at == f"spec.{way}[0]"
    names = {f"{each[0].upper()}{each[1:]}" for each in (first, second)}
    assert caught.value.message in {
        f"combining {x} and {y} is not supported yet" for x in names for y in names if x != y
    }


WITH_PORTS = [("Endpoints", f"[{A}]", "a"), ("CIDR", "[203.0.113.0/24]", "outside"), ("Entities", "[host]", "n1"),
              ("Nodes", "[{}]", "n2"), ("Services", "[{k8sService: {serviceName: outside}}]", "outside"),
              ("CIDRSet", "[{cidr: 203.0.113.0/24}]", "outside")]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "who"), WITH_PORTS, ids=[f"1.4 {row[0]} with ports" for row in WITH_PORTS])
def test_every_kind_of_peer_goes_with_ports(name: str, value: str, who: str, bench: Bench) -> None:
    spec = f"egress: [{{to{name}: {value}, {P80}}}]"
    assert who in met("egress", spec, bench).split()
    assert met("egress", spec, bench, "81/TCP") == ""


# --- 1.5 toPorts


def test_1_5_2_an_end_is_ignored_at_a_port_by_name(bench: Bench) -> None:
    land = bench.enforce("ingress: [{toPorts: [{ports: [{port: http, endPort: 9999, protocol: TCP}]}]}]")
    assert (land.ingress("a", "8080/TCP"), land.ingress("a", "8081/TCP")) == ("allow", "no rule")


@pytest.mark.parametrize("rules", ["{kafka: [{topic: x}]}", "{l7proto: r2d2, l7: [{}]}"])
def test_1_5_4_parsers_that_cilium_gave_up_are_refused_by_name(rules: str, bench: Bench) -> None:
    with pytest.raises(PolicyError, match=" is not supported yet") as caught:
        lang.parse(bench.cnp(f"ingress: [{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {rules}}}]}}]"))
    assert caught.value.unsupported
    assert caught.value.at.startswith("spec.ingress[0].toPorts[0].rules.")


CONTEXT = "{secret: {namespace: s, name: n}, trustedCA: ca.crt, certificate: tls.crt, privateKey: tls.key}"
LISTENERS = [
    "{name: l, priority: 1, envoyConfig: {kind: CiliumEnvoyConfig, name: e}}",
    "{name: l, priority: 100, envoyConfig: {kind: CiliumClusterwideEnvoyConfig, name: e}}",
    "{name: l, envoyConfig: {name: e}}",
]
WHOLE = [
    ("1.5.5 terminatingTLS", f"terminatingTLS: {CONTEXT}"),
    ("1.5.5 originatingTLS", f"originatingTLS: {CONTEXT}"),
    ("1.5.6 server names", f"serverNames: [a.example, '*.b', {'c' * 255}]"),
    *((f"1.5.7 a listener {place}", f"listener: {text}") for place, text in enumerate(LISTENERS)),
]


@pytest.mark.parametrize("field", [row[1] for row in WHOLE], ids=[row[0] for row in WHOLE])
def test_what_has_no_gate_yet_is_valid_and_closed(field: str, bench: Bench) -> None:
    document = bench.cnp(f"egress: [{{toPorts: [{{ports: [{{port: '443', protocol: TCP}}], {field}}}]}}]")
    town = bench.town(document)
    assert town.egress("outside", port="443/TCP") == "deny"
    assert town.view.policies[0].state is PolicyPhase.PARTLY
    assert [fault.at for fault in lang.faults(document)] == [f"spec.egress[0].toPorts[0].{field.split(':')[0]}"]


@pytest.mark.parametrize("priority", [0, 101])
def test_1_5_7_a_listener_s_priority_is_from_1_to_100(priority: int, bench: Bench) -> None:
    text = f"{{name: l, priority: {priority}, envoyConfig: {{name: e}}}}"
    with pytest.raises(PolicyError, match="must be between 1 and 100"):
        lang.parse(bench.cnp(f"egress: [{{toPorts: [{{ports: [{{port: '80'}}], listener: {text}}}]}}]"))


# --- 2.1 and 2.4 labels and selectors

KEYS = [
    ("2.1.2 a key without a source is any", "{matchLabels: {app: a}}", "a"),
    ("2.1.2 any: is the same", "{matchLabels: {'any:app': a}}", "a"),
    ("2.1.1 pods' labels are k8s:", "{matchLabels: {'k8s:app': a}}", "a"),
    ("2.1.1 and of no other source", "{matchLabels: {'cni:app': a}}", ""),
    ("2.1.5 the stored spelling is a key of its own", "{matchLabels: {k8s.app: a}}", ""),
    ("2.4.3 an empty item is everyone in scope", "{}", "a b"),
    ("2.4.3 with empty parts", "{matchLabels: {}, matchExpressions: []}", "a b"),
]


@pytest.mark.parametrize(("selector", "expected"), [row[1:] for row in KEYS], ids=[row[0] for row in KEYS])
def test_keys_of_selectors(selector: str, expected: str, bench: Bench) -> None:
    assert met("egress", f"egress: [{{toEndpoints: [{selector}]}}]", bench) == expected


BAD_KEYS = [
    ("2.1.4 two colons", "'a:b:c'", '"a:b:c" is not a label key'),
    ("2.1.4 a source that is not alphanumeric", "'a.b:c'", "label source should be a non empty string with only "),
    ("2.1.4 no source before the colon", "':c'", "label source should be a non empty string with only alphanumeric"),
    ("2.1.4 no key behind the source", "'k8s:'", '"k8s:" is not a label key'),
    ("2.1.4 two slashes", "'a/b/c'", '"a/b/c" is not a label key'),
    ("2.1.4 a name of 64 characters", "x" * 64, f'"{"x" * 60}…" is not a label key'),
    ("2.1.3 a dollar alone", "'$'", '"$" is not a label key'),
]


@pytest.mark.parametrize(("key", "message"), [row[1:] for row in BAD_KEYS], ids=[row[0] for row in BAD_KEYS])
@pytest.mark.parametrize("place", ["{matchLabels: {KEY: x}}", "{matchExpressions: [{key: KEY, operator: Exists}]}"])
def test_keys_that_are_none(place: str, key: str, message: str, bench: Bench) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse(bench.cnp(f"ingress: [{{fromEndpoints: [{place.replace('KEY', key)}]}}]"))
    assert caught.value.message.startswith(message)


OPERATORS = [
    ("2.1.6 In needs a value", "{key: a, operator: In, values: []}", "values must not be empty for operator In"),
    ("2.1.6 NotIn needs a value", "{key: a, operator: NotIn}", "values must not be empty for operator NotIn"),
    ("2.1.6 Exists has none", "{key: a, operator: Exists, values: [x]}", "values must be empty for operator Exists"),
    ("2.1.6 DoesNotExist has none", "{key: a, operator: DoesNotExist, values: [x]}",
     "values must be empty for operator DoesNotExist"),
    ("2.1.6 there is no Gt", "{key: a, operator: Gt, values: ['1']}",
     'must be In, NotIn, Exists or DoesNotExist, not "Gt"'),
]  # fmt: skip


@pytest.mark.parametrize(("term", "message"), [row[1:] for row in OPERATORS], ids=[row[0] for row in OPERATORS])
def test_operators_and_their_values(term: str, message: str, bench: Bench) -> None:
    with pytest.raises(PolicyError) as caught:
        lang.parse(bench.cnp(f"ingress: [{{fromEndpoints: [{{matchExpressions: [{term}]}}]}}]"))
    assert caught.value.message == message


# --- a tenant stays in its namespace, and its pods keep their identities

FORGED = [
    "io.kubernetes.pod.namespace",
    "io.cilium.k8s.namespace.labels.team",
    "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name",
    "io.cilium.k8s.policy.cluster",
    "io.cilium.k8s.policy.serviceaccount",
]


@pytest.mark.parametrize("key", FORGED)
def test_2_2_a_pod_cannot_give_itself_what_is_generated(key: str, bench: Bench) -> None:
    mallory = f"""
- {{apiVersion: v1, kind: Pod, metadata: {{name: m, namespace: other, labels: {{app: m, {key}: forged}}}},
   spec: {{nodeName: n1}}, status: {{podIP: 10.1.0.66}}}}
"""
    somewhere = "{key: io.kubernetes.pod.namespace, operator: Exists}"
    forged = f"{{matchLabels: {{'{key}': forged}}, matchExpressions: [{somewhere}]}}"
    town = bench.town(f"egress: [{{toEndpoints: [{forged}]}}]", more=mallory)
    assert town.egress("10.1.0.66") == "no rule"
    town = bench.town("egress: [{toEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: other}}]}]", more=mallory)
    assert town.egress("10.1.0.66") == "allow"


@pytest.mark.parametrize("name", ["host", "kube-apiserver", "world", "remote-node", "health"])
def test_2_2_a_pod_cannot_give_itself_reserved_labels(name: str, bench: Bench) -> None:
    mallory = f"""
- {{apiVersion: v1, kind: Pod, metadata: {{name: m, namespace: default, labels: {{'reserved:{name}': '', '${name}': '',
   reserved.{name}: ''}}}}, spec: {{nodeName: n1}}, status: {{podIP: 10.1.0.66}}}}
"""
    for peers in (f"toEntities: [{name}]", f"toEndpoints: [{{matchLabels: {{'reserved:{name}': ''}}}}]"):
        assert bench.town(f"egress: [{{{peers}}}]", more=mallory).egress("10.1.0.66") == "no rule"


SUBJECTS = [
    "{}",
    "{matchLabels: {app: server}}",
    "{matchLabels: {io.kubernetes.pod.namespace: default, app: server}}",
    "{matchLabels: {'k8s:io.kubernetes.pod.namespace': default}}",
    "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: Exists}]}",
    "{matchExpressions: [{key: 'any:io.kubernetes.pod.namespace', operator: In, values: [default, other]}]}",
    "{matchLabels: {io.cilium.k8s.namespace.labels.team: red}}",
    "{matchExpressions: [{key: 'reserved:host', operator: DoesNotExist}]}",
]


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("place", ["spec", "specs"])
def test_2_3_1_a_policy_of_another_namespace_never_touches_ours(place: str, subject: str, bench: Bench) -> None:
    document: Any = bench.cnp("{ingressDeny: [{fromEntities: [all]}], egressDeny: [{toEntities: [all]}]}")
    document["metadata"]["namespace"] = "other"
    document["spec"]["endpointSelector"] = bench.load(subject)
    if place == "specs":
        document["specs"] = [document.pop("spec")]
    town = bench.town(document)
    assert (town.ingress("a", "outside"), town.egress("a", "outside")) == ("allow allow", "allow allow")


def test_2_3_1_nor_does_what_stands_in_for_one_that_is_refused(bench: Bench) -> None:
    document: Any = bench.cnp("egress: [{toPorts: [{ports: [{port: '80'}], rules: {kafka: [{}]}}]}]")
    document["metadata"]["namespace"] = "other"
    document["spec"]["endpointSelector"] = {"matchLabels": {"io.kubernetes.pod.namespace": "default"}}
    town = bench.town(document)
    assert town.view.policies[0].state is PolicyPhase.REFUSED
    assert (town.ingress("a"), town.egress("outside")) == ("allow", "allow")


def test_2_4_2_no_list_of_peers_is_anyone(bench: Bench) -> None:
    (rule,) = lang.parse(bench.cnp(f"ingress: [{{{P80}}}]"))
    assert isinstance(rule, Rule)
    assert rule.peers is None
    assert met("ingress", f"ingress: [{{{P80}}}]", bench) == " ".join(EVERYONE)


def test_2_4_4_an_empty_list_of_peers_is_nobody(bench: Bench) -> None:
    assert met("egress", f"egress: [{{toEndpoints: [], {P80}}}]", bench) == ""


# --- an address that two pods claim belongs to neither

TWO = """
- {apiVersion: v1, kind: Pod, metadata: {name: x, namespace: default, labels: {app: x}},
   spec: {nodeName: n2, containers: [{name: c, ports: [{name: web, containerPort: 80}]}]}, status: {podIP: 10.2.0.50}}
- {apiVersion: v1, kind: Pod, metadata: {name: y, namespace: other, labels: {app: y}}, spec: {nodeName: n2},
   status: {podIP: 10.2.0.50}}
- {apiVersion: v1, kind: Pod, metadata: {name: z, namespace: default, labels: {app: z}},
   spec: {nodeName: n2, containers: [{name: c, ports: [{name: web, containerPort: 80}]}]}, status: {podIP: 10.2.0.51}}
"""
X = "Endpoints: [{matchLabels: {app: x}}]"
WEB = "toPorts: [{ports: [{port: web, protocol: TCP}]}]"
CONTESTED = [
    ("let in with everyone", "all", "", "allow"),
    ("denied with one who may have it", "all", f"{{DENY: [{{SIDE{X}}}]}}", "deny"),
    ("denied with any other", "all", "{DENY: [{SIDEEntities: [remote-node]}]}", "deny"),
    ("not denied with nobody", "all", "{DENY: [{SIDEEntities: [none]}]}", "allow"),
    ("not denied on other ports", "all", "{DENY: [{SIDECIDR: [10.0.0.0/8], toPorts: [{ports: [{port: '81'}]}]}]}",
     "allow"),
    ("denied where authentication is asked of one", "all",
     f"{{ALLOW: [{{SIDE{X}, authentication: {{mode: required}}}}]}}", "deny"),
    ("not let in by name", "none", f"{{ALLOW: [{{SIDE{X}}}]}}", "no rule"),
    ("not let in by what it is not", "none",
     "{ALLOW: [{SIDEEndpoints: [{matchExpressions: [{key: 'reserved:host', operator: DoesNotExist}]}]}]}", "no rule"),
    ("not let in by what we call it", "none",
     "{ALLOW: [{SIDEEndpoints: [{matchLabels: {'reserved:l7proxy-contested-address': ''}}]}]}", "no rule"),
    ("not let in as a part of the cluster", "none", "{ALLOW: [{SIDEEntities: [cluster]}]}", "no rule"),
]  # fmt: skip


@pytest.mark.parametrize("way", ["ingress", "egress"])
@pytest.mark.parametrize(
    ("base", "spec", "expected"), [row[1:] for row in CONTESTED], ids=[row[0] for row in CONTESTED]
)
def test_an_address_that_two_claim(way: str, base: str, spec: str, expected: str, bench: Bench) -> None:
    side = "from" if way == "ingress" else "to"
    text = spec.replace("DENY", f"{way}Deny").replace("ALLOW", way).replace("SIDE", side)
    town = bench.town(f"{way}: [{{{side}Entities: [{base}]}}]", *([text] if text else []), more=TWO)
    assert (town.ingress if way == "ingress" else town.egress)("10.2.0.50") == expected


def test_an_address_that_two_claim_is_denied_by_a_port_s_name_too(bench: Bench) -> None:
    town = bench.town("egress: [{toEntities: [all]}]", f"egressDeny: [{{{WEB}}}]", more=TWO)
    assert town.egress("10.2.0.50", "10.2.0.51", "b") == "deny deny allow"
    town = bench.town(
        "egress: [{toEntities: [all]}]", f"egress: [{{{WEB}, authentication: {{mode: required}}}}]", more=TWO
    )
    assert town.egress("10.2.0.50", "10.2.0.51", "b") == "deny deny allow"
    town = bench.town(f"egress: [{{{WEB}}}]", more=TWO)
    assert town.egress("10.2.0.50", "10.2.0.51") == "no rule allow"


def test_a_contest_that_begins_after_rules_were_compiled_is_heeded_and_forgotten(bench: Bench) -> None:
    specs = (
        "egress: [{toEntities: [all]}]",
        f"egressDeny: [{{{WEB}}}, {{toEndpoints: [{{matchLabels: {{app: z}}}}]}}]",
    )
    calm = bench.town(*specs, more=TWO.replace("10.2.0.50", "10.2.0.49", 1))
    torn = bench.town(*specs, more=TWO)
    assert calm.policies != torn.policies
    compiler = Compiler()
    for town in (calm, torn, calm, torn):
        view = town.view
        assert compiler.compile(view.rules, view.endpoints, view.identities) == town.policies
