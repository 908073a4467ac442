"""When the leader writes, and that it stops when there is nothing new."""

from __future__ import annotations

from math import inf
from typing import Any

from l7proxy.agent.cluster_status import plan as plans
from l7proxy.agent.cluster_status.conditions import ENFORCED, VALID, Verdict, verdict
from l7proxy.agent.cluster_status.ledger import Tally
from l7proxy.agent.cluster_status.plan import NEW_VERSION, NUMBERS, WORSE, Known, Plan, Written
from l7proxy.cluster.policy_status import PolicyStatus
from tests.unit.agent.cluster_status.policies import cnp, network_policy, status

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


class Stage:
    def __init__(self, *policies: PolicyStatus) -> None:
        self.tally = Tally(3, 0, 0)
        self.plan = Plan(lambda policy: verdict(policy, self.tally))
        self.plan.policies(policies)

    def see(self, tally: Tally, now: float) -> tuple[PolicyStatus, Verdict] | float:
        self.tally = tally
        for uid in self.plan.uids:
            self.plan.consider(uid, now)
        return self.plan.next(now)

    def write(self, now: float, stamp: str = NOW) -> Verdict:
        found = self.plan.next(now)
        assert not isinstance(found, float)
        policy, said = found
        self.plan.wrote(policy.uid, said, stamp)
        return said


def test_a_new_policy_is_written_once_when_all_nodes_have_it() -> None:
    stage = Stage(status(cnp("a")))
    assert stage.see(Tally(3, 0, 0), 10.0) == 10.0 + NEW_VERSION
    assert stage.see(Tally(3, 2, 2), 11.0) == 10.0 + NEW_VERSION
    assert not isinstance(stage.see(Tally(3, 3, 3), 11.5), float)
    assert stage.write(11.5).enforced.status == "True"
    assert stage.see(Tally(3, 3, 3), 12.0) == inf


def test_a_node_that_lags_is_named_after_a_while() -> None:
    stage = Stage(status(cnp("a")))
    stage.see(Tally(3, 2, 2, (("n3", "x"),)), 0.0)
    assert stage.plan.next(NEW_VERSION - 0.1) == NEW_VERSION
    assert "2 of 3" in stage.write(NEW_VERSION).enforced.message
    assert stage.see(Tally(3, 2, 2, (("n3", "x"),)), 5.0) == inf


def test_many_nodes_have_more_time() -> None:
    stage = Stage(status(cnp("a")))
    stage.plan.reports_take = 50.0
    assert stage.see(Tally(5000, 0, 0), 10.0) == 60.0 + NEW_VERSION
    assert not isinstance(stage.see(Tally(5000, 5000, 5000), 40.0), float)


def test_a_node_that_joins_costs_one_write_much_later() -> None:
    stage = Stage(status(cnp("a")))
    stage.see(Tally(3, 3, 3), 0.0)
    stage.write(0.0)
    assert stage.see(Tally(4, 3, 3, (("n4", "no report"),)), 100.0) == 100.0 + WORSE
    assert stage.see(Tally(4, 4, 4), 103.0) == 100.0 + NUMBERS
    assert stage.see(Tally(3, 3, 3), 120.0) == inf, "it left again: nothing to write"


def test_the_newest_text_is_written() -> None:
    stage = Stage(status(cnp("a")))
    stage.see(Tally(3, 1, 1), 0.0)
    stage.tally = Tally(3, 2, 2)
    assert "2 of 3" in stage.write(NEW_VERSION).enforced.message


def test_times_change_only_with_the_status() -> None:
    policy = status(cnp("a"))
    stage = Stage(policy)
    stage.see(Tally(3, 3, 3), 0.0)
    said = stage.write(0.0)
    four = verdict(policy, Tally(4, 4, 4))
    assert {one.since for one in stage.plan.dated(policy.uid, four, LATER).values()} == {NOW}
    fewer = verdict(policy, Tally(4, 3, 3))
    assert stage.plan.dated(policy.uid, fewer, LATER)[ENFORCED].since == LATER
    assert stage.plan.dated(policy.uid, fewer, LATER)[VALID].since == NOW
    assert said.valid.status == "True"


def test_a_new_generation_is_written_even_if_the_words_are_the_same() -> None:
    """Then `observedGeneration` is new."""
    bad: dict[str, Any] = {"ingress": [{"fromEndpoints": 5}]}
    stage = Stage(status(cnp("a", 1, **bad)))
    stage.see(Tally(3, 3, 3), 0.0)
    stage.write(0.0)
    assert stage.see(Tally(3, 3, 3), 1.0) == inf
    stage.plan.policies([status(cnp("a", 2, **bad))])
    assert not isinstance(stage.see(Tally(3, 3, 3), 2.0), float)


def test_what_an_earlier_leader_wrote_is_not_written_again() -> None:
    policy = status(cnp("a"))
    stage = Stage(policy)
    found = {one.type: Written(one, NOW) for one in verdict(policy, Tally(3, 3, 3)).conditions}
    for generation in (0, 1):
        stage.plan.adopt({policy.uid: Known(found, generation)})
        assert stage.see(Tally(3, 3, 3), 0.0) == inf
    stage.plan.adopt({policy.uid: Known({}, 0)})
    assert not isinstance(stage.see(Tally(3, 3, 3), 0.0), float)


def test_a_deleted_policy_is_forgotten() -> None:
    stage = Stage(status(cnp("a")))
    stage.see(Tally(3, 3, 3), 0.0)
    stage.plan.policies([])
    assert stage.plan.next(100.0) == inf
    stage.plan.consider("uid-a", 100.0)
    assert stage.plan.next(100.0) == inf


def test_events_tell_changes_only() -> None:
    """Of kinds without conditions: nothing about what was enforced when this leader began, nothing about numbers."""
    old = status(network_policy("old"))
    stage = Stage()
    stage.tally = Tally(3, 3, 3)
    stage.plan = plans.Plan(lambda policy: verdict(policy, stage.tally))
    stage.plan.policies([old])
    assert stage.see(Tally(3, 3, 3), 0.0) == inf
    assert stage.see(Tally(4, 4, 4), 1.0) == inf
    stage.plan.policies([old, status(network_policy("new"))])
    found = stage.see(Tally(4, 4, 4), 2.0)
    assert not isinstance(found, float)
    assert found[0].name == "new"
    stage.write(2.0)
    assert stage.see(Tally(5, 5, 5), 3.0) == inf
    assert stage.see(Tally(5, 4, 4), 4.0) == 4.0 + WORSE
