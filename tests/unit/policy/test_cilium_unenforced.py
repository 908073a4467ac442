"""Unenforceable parts are reported by name, the rest of the document holds, and nothing more passes because of it.

An allow rule that only widens (toFQDNs, rules.dns, groups of a cloud) matches nothing. One that demands more than an
allow (server names, TLS, a listener, authentication) denies what it covers: a plain rule of another policy must not
let unchecked traffic pass that Cilium would check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from l7proxy.cluster.policy_status import PolicyPhase
from l7proxy.errors import PolicyError
from l7proxy.model.verdict import Direction
from l7proxy.policy import lang

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

TLS = "{secret: {namespace: s, name: n}}"
LISTENER = "{name: l, envoyConfig: {kind: CiliumEnvoyConfig, name: e}}"
P443 = "ports: [{port: '443', protocol: TCP}]"
OTHER = "{toEndpoints: [{matchLabels: {app: b}}]}"
CHECKED = "is not supported yet: traffic that its rule covers is denied"

DENIED = [
    ("serverNames", f"{{toPorts: [{{{P443}, serverNames: [a.example]}}]}}", "toPorts[0].serverNames"),
    ("terminatingTLS", f"{{toPorts: [{{{P443}, terminatingTLS: {TLS}}}]}}", "toPorts[0].terminatingTLS"),
    ("originatingTLS", f"{{toPorts: [{{{P443}, originatingTLS: {TLS}}}]}}", "toPorts[0].originatingTLS"),
    ("listener", f"{{toPorts: [{{{P443}, listener: {LISTENER}}}]}}", "toPorts[0].listener"),
    ("authentication", f"{{toPorts: [{{{P443}}}], authentication: {{mode: required}}}}", "authentication"),
    (
        "authentication that always fails",
        f"{{toPorts: [{{{P443}}}], authentication: {{mode: test-always-fail}}}}",
        "authentication",
    ),
    (
        "HTTP behind TLS",
        f"{{toPorts: [{{{P443}, terminatingTLS: {TLS}, serverNames: [a.b], rules: {{http: [{{}}]}}}}]}}",
        "toPorts[0].terminatingTLS",
    ),
]


@pytest.mark.parametrize(("item", "at"), [row[1:] for row in DENIED], ids=[row[0] for row in DENIED])
def test_what_asks_for_more_denies_what_it_covers_and_no_more(item: str, at: str, bench: Bench) -> None:
    town = bench.town(f"egress: [{item}, {OTHER}]", "egress: [{toEntities: [all]}]")
    assert town.egress("a", "outside", "n2", port="443/TCP") == "deny deny deny"
    assert town.egress("a", "b", port="80/TCP") == "allow allow"
    state = town.view.policies[0]
    assert state.state is PolicyPhase.PARTLY
    assert f"spec.egress[0].{at}: {CHECKED}" in state.reason


def test_the_reason_of_a_denial_names_the_policy_and_the_field(bench: Bench) -> None:
    town = bench.town(f"egress: [{DENIED[0][1]}]")
    reason = town.port(Direction.EGRESS, "203.0.113.7", "443/TCP").l4.reason
    assert reason == f"policy default/p0 is partly enforced: spec.egress[0].toPorts[0].serverNames: {CHECKED}"


@pytest.mark.parametrize(
    ("item", "port"),
    [
        ("{fromEndpoints: [{}], toPorts: [{ports: [{port: '443'}], serverNames: [a.example]}]}", "443/TCP"),
        ("{fromEntities: [all], authentication: {mode: required}}", "80/TCP"),
        ("{toPorts: [{ports: [{port: '443'}]}], authentication: {mode: required}}", "443/TCP"),
    ],
)
def test_the_local_host_gets_in_all_the_same(item: str, port: str, bench: Bench) -> None:
    town = bench.town(f"ingress: [{item}]")
    assert town.ingress("a", "n1", port=port) == "deny allow"


def test_a_covered_peer_is_denied_and_no_other(bench: Bench) -> None:
    checked = "ingress: [{fromEndpoints: [{matchLabels: {app: a}}], authentication: {mode: required}}]"
    town = bench.town(checked, "ingress: [{fromEntities: [all]}]")
    assert town.ingress("a", "b", "outside") == "deny allow allow"


def test_authentication_that_is_disabled_is_a_plain_allow(bench: Bench) -> None:
    spec = "ingress: [{fromEndpoints: [{matchLabels: {app: a}}], authentication: {mode: disabled}}]"
    town = bench.town(spec)
    assert (town.ingress("a", "b"), town.view.policies[0].state) == ("allow no rule", PolicyPhase.ACCEPTED)
    wide = "ingress: [{fromEndpoints: [{}], authentication: {mode: required}}]"
    assert bench.town(spec, wide).ingress("a") == "deny", "closed, though Cilium would let it pass"


NOBODY = [
    ("toFQDNs", "{toFQDNs: [{matchName: a.example}]}", "toFQDNs", "is not supported yet: it matches no peer"),
    (
        "toFQDNs with ports",
        f"{{toFQDNs: [{{matchPattern: '*.example'}}], toPorts: [{{{P443}}}]}}",
        "toFQDNs",
        "is not supported yet: it matches no peer",
    ),
    (
        "rules.dns",
        "{toEndpoints: [{matchLabels: {app: b}}], "
        "toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchPattern: '*'}]}}]}",
        "toPorts[0].rules.dns",
        "is not supported yet: no queries are allowed",
    ),
    (
        "groups of a cloud",
        "{toGroups: [{aws: {securityGroupsNames: [x]}}]}",
        "toGroups",
        "is not supported: cloud provider groups match no peer",
    ),
]


@pytest.mark.parametrize(("item", "at", "why"), [row[1:] for row in NOBODY], ids=[row[0] for row in NOBODY])
def test_what_only_widens_means_nobody_and_the_rest_holds(item: str, at: str, why: str, bench: Bench) -> None:
    town = bench.town(f"egress: [{item}, {{toEndpoints: [{{matchLabels: {{app: a}}}}]}}]")
    assert town.egress("a", "b", "outside", "n2") == "allow no rule no rule no rule"
    assert town.egress("b", "outside", port="53/UDP") == "no rule no rule"
    assert (town.view.policies[0].state, town.view.policies[0].reason) == (
        PolicyPhase.PARTLY,
        f"spec.egress[0].{at}: {why}",
    )


@pytest.mark.parametrize(("item", "at", "why"), [row[1:] for row in NOBODY], ids=[row[0] for row in NOBODY])
def test_alone_it_puts_its_direction_into_default_deny(item: str, at: str, why: str, bench: Bench) -> None:
    assert bench.town(f"egress: [{item}]").egress("a", "b", "outside") == "no rule no rule no rule"


def test_another_policy_may_allow_what_it_did_not(bench: Bench) -> None:
    """As in Cilium: another rule's plain allow is enough for the address, and for every name."""
    town = bench.town(f"egress: [{NOBODY[0][1]}]", "egress: [{toCIDR: [203.0.113.0/24]}]")
    assert town.egress("outside", "192.0.2.1") == "allow no rule"


ATTACKS = [
    ("server names of toFQDNs", f"{{toFQDNs: [{{matchName: a.b}}], toPorts: [{{{P443}, serverNames: [a.b]}}]}}"),
    ("authentication of toFQDNs", "{toFQDNs: [{matchName: a.b}], authentication: {mode: required}}"),
    ("a listener for toFQDNs", f"{{toFQDNs: [{{matchName: a.b}}], toPorts: [{{{P443}, listener: {LISTENER}}}]}}"),
    ("authentication of a group", "{toGroups: [{aws: {}}], authentication: {mode: required}}"),
]


@pytest.mark.parametrize("item", [row[1] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_a_check_on_addresses_that_we_do_not_know_is_closed_for_all_outside(item: str, bench: Bench) -> None:
    town = bench.town(f"egress: [{item}]", "egress: [{toEntities: [all]}]")
    assert town.egress("outside", "apiserver", "a", "n2", port="443/TCP") == "deny deny allow allow"


def test_without_default_deny_a_check_still_denies_what_it_covers(bench: Bench) -> None:
    item = "{toEndpoints: [{matchLabels: {app: a}}], authentication: {mode: required}}"
    town = bench.town(f"{{egress: [{item}], enableDefaultDeny: {{egress: false}}}}")
    assert town.egress("a", "b") == "deny allow"


@pytest.mark.parametrize(
    "spec",
    [
        "ingressDeny: [{fromGroups: [{aws: {}}]}]",
        "egress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {kafka: []}}]}]",
        "egress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {l7proto: x, l7: []}}]}]",
    ],
)
def test_what_cannot_be_narrowed_refuses_the_whole_document(spec: str, bench: Bench) -> None:
    town = bench.town(spec, "{ingress: [{fromEntities: [all]}], egress: [{toEntities: [all]}]}")
    assert town.view.policies[0].state is PolicyPhase.REFUSED
    assert (town.ingress if "ingress" in spec else town.egress)("a", "outside") == "deny deny"


HOST = "{nodeSelector: {matchLabels: {zone: east}}, endpointSelector: null, ingress: [{fromEntities: [none]}]}"


def test_3_11_a_policy_for_nodes_has_no_effect_and_says_so(bench: Bench) -> None:
    document = bench.ccnp(HOST)
    del document["spec"]["endpointSelector"]
    town = bench.town(document)
    (state,) = town.view.policies
    assert (state.state, state.reason, state.rules) == (
        PolicyPhase.PARTLY,
        "spec.nodeSelector: has no effect: host policies are not supported",
        (),
    )
    assert town.ingress("a", "outside") == "allow allow"


def test_3_11_beside_it_a_policy_for_pods_is_enforced(bench: Bench) -> None:
    document = bench.ccnp("ingress: [{fromEntities: [none]}]")
    document["specs"] = [bench.ccnp(HOST)["spec"]]
    del document["specs"][0]["endpointSelector"]
    assert bench.town(document).ingress("a") == "no rule"


def test_a_document_that_is_wrong_as_well_is_invalid_not_unsupported(bench: Bench) -> None:
    spec = "{egress: [{toNodes: [{}]}, {toCIDR: [x]}]}"
    with pytest.raises(PolicyError) as caught:
        lang.parse(bench.cnp(spec))
    assert (caught.value.at, caught.value.unsupported) == ("spec.egress[1].toCIDR[0]", False)
    assert [fault.at for fault in lang.faults(bench.cnp(spec))] == [
        "spec.egress[0].toNodes",
        "spec.egress[1].toCIDR[0]",
    ]


def test_every_part_that_is_not_enforced_is_told_at_once(bench: Bench) -> None:
    document = bench.cnp(f"egress: [{NOBODY[0][1]}, {DENIED[0][1]}, {OTHER}]")
    assert [fault.at for fault in lang.faults(document)] == [
        "spec.egress[0].toFQDNs",
        "spec.egress[1].toPorts[0].serverNames",
    ]
    assert all(fault.unsupported for fault in lang.faults(document))


BASES = [
    "egress: [{}]",
    "egress: [{toEntities: [all]}]",
    "egress: [{toPorts: [{ports: [{port: '443'}]}]}]",
    "egress: [{toEndpoints: [{matchLabels: {app: a}}]}, {toCIDR: [203.0.113.0/24]}]",
    "egress: [{toPorts: [{ports: [{port: '1', endPort: 500}]}]}]",
]
PARTS = [row[1] for row in (*DENIED, *NOBODY, *ATTACKS)]


@pytest.mark.parametrize("base", BASES)
def test_no_part_that_is_not_enforced_lets_more_pass(base: str, bench: Bench) -> None:
    flows = [(who, port) for who in ("a", "b", "outside", "n2") for port in ("443/TCP", "80/TCP", "53/UDP")]
    alone = bench.town(base)
    for part in PARTS:
        both = bench.town(base, f"egress: [{part}]")
        wider = [
            flow for flow in flows if both.egress(flow[0], port=flow[1]) == "allow"
            and alone.egress(flow[0], port=flow[1]) != "allow"
        ]  # fmt: skip
        assert not wider, part


CLOSED = [
    ("11.22 another server name beside a plain allow", f"{{toPorts: [{{{P443}, serverNames: [a]}}]}}", "443/TCP"),
    ("11.23 no server name at all", f"{{toPorts: [{{{P443}, serverNames: ['*']}}]}}", "443/TCP"),
    ("11.50 a name of two labels for one star", NOBODY[2][1], "53/UDP"),
    ("11.52 an address behind a CNAME", NOBODY[0][1], "443/TCP"),
    ("11.53 toFQDNs without a dns rule: the lookup", NOBODY[0][1], "53/UDP"),
    ("11.53 toFQDNs without a dns rule: the connection", NOBODY[0][1], "80/TCP"),
]


@pytest.mark.parametrize(("item", "port"), [row[1:] for row in CLOSED], ids=[row[0] for row in CLOSED])
def test_what_cilium_would_have_refused_by_them_is_refused(item: str, port: str, bench: Bench) -> None:
    assert bench.town(f"egress: [{item}]").egress("outside", port=port) in ("deny", "no rule")


def test_of_many_parts_a_state_names_the_first_and_counts_the_rest(bench: Bench) -> None:
    reason = bench.town(f"egress: [{', '.join([NOBODY[0][1]] * 12)}]").view.policies[0].reason
    assert reason.count("is not supported yet") == 10
    assert reason.endswith("; and 2 more")
