"""What a node reports: small, independent of order, and no input of a stranger does harm."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.agent.cluster_status import summary
from l7proxy.agent.cluster_status.summary import BUCKETS, Summary, digests, exceptions, from_text, to_text
from l7proxy.cluster.policy_status import PolicyPhase
from tests.unit.agent.cluster_status.policies import cnp, many, status


def test_a_report_is_small_whatever_the_number_of_policies() -> None:
    policies = many(5000)
    reasons = {f"u{one}": "x" * 1000 for one in range(summary.MAX_EXCEPTIONS)}
    longest = Summary(digests(policies), reasons, kernel="k" * 5000, l7="w" * 5000)
    assert len(to_text(longest)) < 3000
    assert len(to_text(Summary(digests(policies)))) < 600


def test_the_digests_do_not_depend_on_the_order() -> None:
    policies = many(300)
    assert digests(policies) == digests(reversed(policies))


@settings(deadline=None)
@given(st.integers(0, 299), st.sampled_from(["generation", "phase", "gone"]))
def test_one_change_is_seen_in_one_bucket(number: int, what: str) -> None:
    before = many(300)
    after = list(before)
    if what == "gone":
        del after[number]
    elif what == "phase":
        after[number] = replace(after[number], state=PolicyPhase.PARTLY)
    else:
        after[number] = replace(after[number], generation=2)
    differing = [one != other for one, other in zip(digests(before), digests(after), strict=True)]
    assert sum(differing) == 1
    assert differing[summary.bucket_of(before[number].uid)]


def test_what_is_written_is_read() -> None:
    said = Summary(digests(many(10)), {"u1": "too large"}, kernel="no memory", l7="no worker runs", audit=True)
    assert from_text(to_text(said)) == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "\x00",
        "null",
        json.dumps({"v": 2, "enforced": ""}),
        json.dumps({"v": 1, "enforced": "AAAA"}),
        json.dumps({"v": 1, "enforced": "!" * 512}),
        json.dumps({"v": 1, "enforced": 5}),
        json.dumps({"v": 1, "enforced": "", "more": 1}),
    ],
)
def test_what_is_no_report(text: str) -> None:
    assert from_text(text) is None


def test_text_of_strangers_is_bounded_and_printable() -> None:
    said = json.loads(to_text(Summary(digests([]))))
    found = from_text(json.dumps(said | {"kernel": "a\n\x1b[31mb" + "c" * 10_000}))
    assert found is not None
    assert found.kernel.startswith("a [31mb")
    assert found.kernel.isprintable()
    assert len(found.kernel) <= summary.MAX_TEXT


def test_too_many_exceptions_are_no_report() -> None:
    said = json.loads(to_text(Summary(digests([]))))
    assert from_text(json.dumps(said | {"exceptions": {str(one): "" for one in range(1000)}})) is None


def test_exceptions_are_what_the_limits_of_the_node_change() -> None:
    policies = (status(cnp("a")), status(cnp("b")))
    partly = replace(policies[1], state=PolicyPhase.PARTLY, reason="its patterns are too large")
    assert exceptions(policies, policies) == {}
    assert exceptions(policies, (policies[0], partly)) == {"uid-b": "its patterns are too large"}


def test_policies_of_manifests_without_a_uid_are_not_reported() -> None:
    with_uid, without = status(cnp("a")), status(cnp("b"))
    assert digests([with_uid, replace(without, uid="")]) == digests([with_uid])
    assert len(digests([])) == BUCKETS
