"""Endpoints that the same policies select share one compiled policy, whatever else differs: a thousand pods under ten
thousand HTTP rules are compiled once, and cross the link once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from l7proxy.link.delta import EMPTY, delta
from l7proxy.link.messages import PolicySnapshot
from l7proxy.model.endpoint import Endpoint
from l7proxy.model.ids import EndpointId
from l7proxy.model.labels import K8S, Label, LabelSet
from l7proxy.policy import lang
from l7proxy.policy.compile import compile_policies
from l7proxy.policy.tables import EndpointPolicy, LocalEndpoint

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

RULES = """
ingress:
- toPorts:
  - ports: [{port: http, protocol: TCP}]
    rules: {http: [{path: /a}]}
"""


def pods(bench: Bench, *, audit: bool = False, named: int = 8080) -> list[Endpoint]:
    own = bench.server()
    return [
        replace(
            own,
            id=EndpointId(number),
            labels=LabelSet.of([*own.labels.labels, Label(K8S, "shard", str(number))]),
            named_ports=frozenset({("http", 6, named)}),
            audit=audit,
        )
        for number in (1, 2, 3)
    ]


def compiled(bench: Bench, *endpoints: Endpoint) -> dict[int, EndpointPolicy]:
    return compile_policies(lang.parse(bench.cnp(RULES)), endpoints, {})


def test_pods_of_many_labels_share_what_the_same_policies_make(bench: Bench) -> None:
    first, *others = compiled(bench, *pods(bench)).values()
    assert first.ingress is not None
    assert all(one.ingress is first.ingress for one in others)


def test_and_it_crosses_the_link_once(bench: Bench) -> None:
    policies = compiled(bench, *pods(bench))
    endpoints = tuple(LocalEndpoint(number, f"default/{number}", (), one) for number, one in policies.items())
    assert len(delta(EMPTY, PolicySnapshot(revision=1, endpoints=endpoints, identities={})).policies) == 1


def test_what_a_policy_makes_different_for_them_is_not_shared(bench: Bench) -> None:
    other_port = replace(pods(bench, named=9090)[0], id=EndpointId(4))
    audited = replace(pods(bench, audit=True)[0], id=EndpointId(5))
    found = compiled(bench, *pods(bench), other_port, audited)
    tiers = [one.ingress.tiers[0] for one in found.values() if one.ingress is not None]
    assert [tier.stages[0][0].first for tier in tiers] == [8080, 8080, 8080, 9090, 8080]
    assert [bool(tier.audited_by) for tier in tiers] == [False, False, False, False, True]
