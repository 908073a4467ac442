"""Limits for patterns in workers: per document, per endpoint, per node; policies above a limit deny, by name."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from l7proxy.cluster import pattern_limits
from l7proxy.cluster.policy_status import PolicyPhase, PolicyStatus
from l7proxy.cluster.state import ClusterState
from l7proxy.model.net import PrefixTable
from l7proxy.model.resources import Change, Node, Pod, PolicyDocument, Upsert
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.policy import decide, lang
from l7proxy.policy.compile import compile_policies
from l7proxy.policy.match.pattern import MAX_PROGRAM, MAX_PROGRAM_OF_NODE, check
from l7proxy.sources import objects

LARGE = r"\pL{1,8}"
SIZE = check(f"/x/{LARGE}")
THIRD = MAX_PROGRAM // SIZE * 2 // 5
"""Patterns that take two fifths of an endpoint's limit."""


def policy(name: str, role: str, count: int, namespace: str = "default") -> PolicyDocument:
    rules = [{"method": "GET", "path": f"/{number}/{LARGE}"} for number in range(count)]
    ports = [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": rules}}]
    spec = {"endpointSelector": {"matchLabels": {"role": role}}, "ingress": [{"toPorts": ports}]}
    kind, metadata = "CiliumNetworkPolicy", {"name": name, "namespace": namespace}
    document = {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec}
    return objects.policy(document)


def pod(name: str, place: int, namespace: str = "default") -> Pod:
    return Pod(namespace, name, "n1", (f"10.0.1.{place}",), {"role": name}, phase="Running")


def cluster_state(changes: Iterable[Change]) -> ClusterState:
    made = ClusterState()
    made.apply([Upsert(Node("n1", ("192.168.0.1",), ("10.0.1.0/24",))), *changes])
    return made


def states(found: Iterable[PolicyStatus]) -> dict[str, str]:
    return {one.name: one.state.value for one in found}


def verdict(made: ClusterState, name: str, port: int = 80) -> decide.PortPolicy:
    """The verdict of a pod for traffic from outside."""
    view = made.view("n1")
    policies = compile_policies(view.rules, view.endpoints, view.identities)
    (number,) = (one.id for one in view.endpoints if one.name == name)
    who = PrefixTable(view.by_prefix).get("203.0.113.9")
    return decide.port(policies[number].direction(Direction.INGRESS), who or 0, 6, port)


def test_two_fit_on_an_endpoint_and_the_third_refuses_what_it_covers() -> None:
    some = [policy(name, "server", THIRD) for name in ("c", "a", "b")]
    made = cluster_state([Upsert(pod("server", 1)), Upsert(pod("other", 2)), *map(Upsert, some)])
    view = made.view("n1")
    assert states(view.policies) == {"a": "accepted", "b": "accepted", "c": "partly"}
    assert states(view.judged) == dict.fromkeys("abc", "accepted"), "as on nodes without these pods"
    (state,) = (one for one in view.policies if one.name == "c")
    assert state.reason == (
        f"its regular expressions need {state.program} RE2 instructions, and other policies of one endpoint use "
        f"{2 * state.program} of the limit of {MAX_PROGRAM}; connections that its HTTP rules cover are refused"
    )
    found = verdict(made, "server").l4
    assert (found.verdict, found.ref and found.ref.name) == (Verdict.DROPPED, "c")
    assert found.reason == f"policy default/c is partly enforced: {state.reason}"


def test_what_selects_nobody_here_takes_nothing() -> None:
    some = [policy(name, "elsewhere", THIRD) for name in "abcdefgh"]
    view = cluster_state([Upsert(pod("server", 1)), *map(Upsert, some)]).view("n1")
    assert set(states(view.policies).values()) == {"accepted"}


def test_a_node_holds_so_many_and_the_greediest_namespace_is_refused_first() -> None:
    roles = [f"r{number}" for number in range(6)]
    pods = [Upsert(pod(role, place)) for place, role in enumerate(roles, 1)]
    pods.append(Upsert(pod("modest", 99, "zzz")))
    some = [policy(role, role, THIRD) for role in roles]
    made = cluster_state([*pods, *map(Upsert, some), Upsert(policy("modest", "modest", THIRD, "zzz"))])
    view = made.view("n1")
    fit = [one for one in view.policies if one.state is PolicyPhase.ACCEPTED]
    assert sum(one.program for one in fit) <= MAX_PROGRAM_OF_NODE < sum(one.program for one in fit) + fit[0].program
    assert "modest" in {one.name for one in fit}
    assert verdict(made, "modest").redirects
    assert verdict(made, "r5").l4.verdict is Verdict.DROPPED
    assert set(states(made.view(None).policies).values()) == {"accepted"}, "many nodes together have no such limit"


def test_the_answer_depends_on_what_there_is_and_not_on_the_way_there() -> None:
    dice = random.Random(4)
    pods = [pod("server", 1), pod("other", 2)]
    some = [policy(f"p{number}", dice.choice(("server", "other")), dice.randint(3, 20)) for number in range(12)]
    whole = [*map(Upsert, pods), *map(Upsert, some)]
    expected = cluster_state(whole).view("n1")
    assert {"partly", "accepted"} == set(states(expected.policies).values())
    for _ in range(3):
        dice.shuffle(whole)
        made = ClusterState()
        for change in [Upsert(Node("n1", ("192.168.0.1",), ("10.0.1.0/24",))), *whole]:
            made.apply([change])
            made.view("n1")
        assert made.view("n1").policies == expected.policies
        assert made.view("n1").rules == expected.rules


def test_a_document_that_is_too_large_alone_is_refused_by_name() -> None:
    (fault, *_) = lang.faults(policy("p", "server", MAX_PROGRAM // SIZE + 1).document)
    assert fault.at == f"spec.ingress[0].toPorts[0].rules.http[{MAX_PROGRAM // SIZE}].path"
    assert f"the limit is {MAX_PROGRAM}" in str(fault)


@pytest.mark.parametrize("count", [1, 50])
def test_few_patterns_are_not_even_counted(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("needless work")

    monkeypatch.setattr(pattern_limits, "_in_order", never)
    view = cluster_state([Upsert(pod("server", 1)), Upsert(policy("p", "server", min(count, THIRD)))]).view("n1")
    assert states(view.policies) == {"p": "accepted"}
