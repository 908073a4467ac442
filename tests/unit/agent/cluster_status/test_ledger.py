"""The leader's book, against a slow evaluator that compares every policy of every node."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.agent.cluster_status import ledger
from l7proxy.agent.cluster_status.ledger import Ledger, Tally
from l7proxy.agent.cluster_status.summary import Summary, digests, entries
from l7proxy.cluster.policy_status import PolicyStatus
from tests.unit.agent.cluster_status.policies import many

NODES = ("n1", "n2", "n3", "n4")


def book(policies: list[PolicyStatus]) -> Ledger:
    found = Ledger()
    found.nodes(NODES)
    found.policies(entries(policies))
    return found


def test_all_nodes() -> None:
    policies = many(100)
    found = book(policies)
    assert found.tally("u1") == Tally(4, 0, 0, tuple((node, ledger.NO_REPORT) for node in NODES[: ledger.NAMED]))
    for node in NODES:
        found.report(node, Summary(digests(policies)))
    assert found.tally("u1") == Tally(4, 4, 4)


def test_a_node_that_is_behind_counts_for_what_did_not_change() -> None:
    policies = many(200)
    found = book(policies)
    for node in NODES:
        found.report(node, Summary(digests(policies)))
    newer = [replace(policies[0], generation=2), *policies[1:]]
    found.policies(entries(newer))
    for node in NODES[1:]:
        found.report(node, Summary(digests(newer)))
    assert found.tally("u0") == Tally(4, 3, 3, (("n1", ledger.OTHER_VERSION),))
    assert all(found.tally(policy.uid) == Tally(4, 4, 4) for policy in newer[1:])
    found.report("n1", Summary(digests(policies), kernel="no memory"))
    assert found.tally("u0").missing == (("n1", "kernel: no memory"),)


def test_reports_that_do_not_count() -> None:
    policies = many(3)
    found = book(policies)
    found.report("stranger", Summary(digests(policies)))
    found.report("n1", None)
    found.report("n2", Summary(digests(policies), exceptions={"u1": "too large", "u-unknown": "x"}))
    assert found.tally("u1") == Tally(
        4, 0, 0, (("n1", ledger.UNREADABLE), ("n2", "too large"), ("n3", ledger.NO_REPORT))
    )
    assert found.tally("u2").enforcing == 1
    found.nodes((*NODES, "stranger"))
    assert found.tally("u2").enforcing == 2
    found.only(["stranger"])
    assert found.tally("u2").enforcing == 1
    found.nodes(["n1"])
    assert found.tally("u2") == Tally(1, 0, 0, (("n1", ledger.NO_REPORT),))


def test_l7_counts_apart() -> None:
    policies = many(3)
    found = book(policies)
    for node in NODES[:3]:
        found.report(node, Summary(digests(policies), l7="no worker runs" if node == "n2" else ""))
    assert found.tally("u1") == Tally(4, 3, 2, (("n4", ledger.NO_REPORT),), (("n2", "no worker runs"),))


def test_a_node_in_audit_mode_enforces_nothing() -> None:
    policies = many(3)
    found = book(policies)
    for node in NODES:
        found.report(node, Summary(digests(policies), {"u0": "too large"}, audit=node == "n2"))
    assert found.tally("u1") == Tally(4, 3, 3, (("n2", ledger.AUDIT),))
    assert found.tally("u0").enforcing == 0
    found.report("n2", Summary(digests(policies)))
    assert found.tally("u1") == Tally(4, 4, 4)


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["edit", "report", "report", "l7", "except", "forget", "leave", "join"])).flatmap(
        lambda what: st.tuples(st.just(what[0]), st.integers(0, 3), st.integers(0, 4))
    ),
    max_size=30,
)


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_as_the_slow_evaluator(steps: list[Step]) -> None:
    """A node's report is that of the newest policies at that time."""
    policies = many(5)
    found, nodes = book(policies), set(NODES)
    reports: dict[str, tuple[dict[str, int], Summary]] = {}
    for what, number, which in steps:
        node = NODES[number]
        if what == "edit":
            policies[which] = replace(policies[which], generation=policies[which].generation + 1)
            found.policies(entries(policies))
        elif what in ("report", "l7", "except"):
            said = Summary(
                digests(policies),
                {f"u{which}": "too large"} if what == "except" else {},
                l7="no worker runs" if what == "l7" else "",
            )
            reports[node] = {one.uid: one.generation for one in policies}, said
            found.report(node, said)
        elif what == "forget":
            reports.pop(node, None)
            found.forget(node)
        else:
            (nodes.discard if what == "leave" else nodes.add)(node)
            found.nodes(nodes)
    for policy in policies:
        good = [
            said
            for node, (versions, said) in reports.items()
            if node in nodes and versions[policy.uid] == policy.generation and policy.uid not in said.exceptions
        ]
        tally = found.tally(policy.uid)
        assert (tally.nodes, tally.enforcing, tally.l7) == (len(nodes), len(good), sum(not one.l7 for one in good))
        assert len(tally.missing) == min(ledger.NAMED, len(nodes) - len(good))
