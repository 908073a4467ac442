"""Full snapshots and deltas: the decoded snapshot equals the encoded one; equal policies are sent once."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.errors import LinkError
from l7proxy.gate.options import HttpOptions
from l7proxy.link import framing
from l7proxy.link.delta import EMPTY, UNGOVERNED, SnapshotDecoder, delta
from l7proxy.link.messages import PackedEndpoint, PolicySnapshot, SnapshotDelta
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action
from l7proxy.policy.rules import HttpRule, HttpRules
from l7proxy.policy.tables import EndpointPolicy, Entry, LocalEndpoint, union

REF = RuleRef("CiliumNetworkPolicy", "ns", "p", "spec", "p.yaml", 3)
RULES = tuple(HttpRule(REF, path=f"/{number}", number=number) for number in range(300))
POLICIES = [
    None,
    union((Entry(Action.ALLOW, REF, (1, 2)),), (REF,)),
    union((Entry(Action.REDIRECT, REF, None, 6, 80, 80, l7=HttpRules(RULES[:2])),), (REF,)),
    union((), (REF,)),
]


@st.composite
def snapshots(draw: st.DrawFn) -> list[PolicySnapshot]:
    """Consecutive revisions of one node."""
    found = []
    for revision in range(1, draw(st.integers(2, 5))):
        ids = draw(st.lists(st.integers(1, 5), unique=True).map(sorted))
        endpoints = tuple(
            LocalEndpoint(
                number,
                f"ns/p{number}",
                draw(st.sampled_from([("10.0.0.1",), ("10.0.0.2", "fd00::2")])),
                EndpointPolicy(number, draw(st.sampled_from(POLICIES)), draw(st.sampled_from(POLICIES))),
            )
            for number in ids
        )
        identities = draw(st.dictionaries(st.sampled_from(["10.0.0.1/32", "10.0.0.2/32", "::/0"]), st.integers(1, 3)))
        headers = draw(st.sampled_from([frozenset(), frozenset({b"x-a"})]))
        found.append(PolicySnapshot(revision, endpoints, identities, http=HttpOptions(flow_headers=headers)))
    return found


def sent(message: SnapshotDelta) -> SnapshotDelta:
    """Encodes and decodes, as over the link."""
    (heard,) = framing.from_agent().feed(framing.encode(message))
    assert isinstance(heard, SnapshotDelta)
    return heard


@given(snapshots())
def test_deltas_lead_to_the_same_snapshots(some: list[PolicySnapshot]) -> None:
    snapshots = SnapshotDecoder()
    for before, after in zip([EMPTY, *some], some, strict=False):
        message = delta(before, after)
        assert snapshots.open(sent(message)) == after


def test_replicas_policies_go_once() -> None:
    policy = union((Entry(Action.REDIRECT, REF, None, 6, l7=HttpRules(RULES)),), (REF,))
    replicas = tuple(
        LocalEndpoint(number, "ns/p", (f"10.0.0.{number}",), EndpointPolicy(number, policy)) for number in range(1, 101)
    )
    one = len(framing.encode(delta(EMPTY, PolicySnapshot(1, replicas[:1], {}))))
    assert len(framing.encode(delta(EMPTY, PolicySnapshot(1, replicas, {})))) < 2 * one


def test_the_size_of_a_delta_is_that_of_the_change() -> None:
    identities = {f"10.0.{number >> 8}.{number & 255}/32": 7 for number in range(10_000)}
    before = PolicySnapshot(1, (), identities)
    after = PolicySnapshot(2, (), identities | {"10.0.0.1/32": 8})
    assert len(framing.encode(delta(before, after))) < 1000


def test_a_delta_that_does_not_fit_is_refused() -> None:
    before, after, later = (PolicySnapshot(revision, (), {}) for revision in (1, 2, 3))
    with pytest.raises(LinkError, match="a delta to policy revision 1, but the current one is 0"):
        SnapshotDecoder().open(delta(before, after))
    snapshots = SnapshotDecoder()
    snapshots.open(delta(EMPTY, before))
    with pytest.raises(LinkError, match="a delta to policy revision 2, but the current one is 1"):
        snapshots.open(delta(after, later))


@pytest.mark.parametrize("place", [1, -2, 7])
def test_a_policy_that_is_not_there_is_refused(place: int) -> None:
    message = msgspec.structs.replace(
        delta(EMPTY, PolicySnapshot(1, (), {})),
        endpoints=(PackedEndpoint(1, "a", (), place, UNGOVERNED),),
    )
    with pytest.raises(LinkError, match="refers to policy"):
        SnapshotDecoder().open(message)
