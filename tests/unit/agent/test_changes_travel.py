"""What follows changes is what the whole state gives: the tables for the kernel, what a worker knows, what is revoked.

One agent lives through a random history. The kernel may refuse a state, so that the next difference is from an older
one, or lose its tables; a worker may be slow, or connect anew. Addresses and identities are freed and given to others.
After every step all parts are compared with those of an agent that starts now.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.agent.dataplane.render import DesiredState
from l7proxy.link import framing
from l7proxy.link.delta import EMPTY, SnapshotDecoder, delta
from l7proxy.link.messages import PolicySnapshot, SnapshotDelta
from l7proxy.model import resources, versioned
from l7proxy.model.resources import Change, Upsert
from l7proxy.policy.endpoints import EndpointIndex
from tests.unit.agent.test_no_hysteresis import PEERS, Agent, Life
from tproxy_rules import desired as kernel
from tproxy_rules.digest import digest
from tproxy_rules.nft.backend import NftablesBackend, Tables
from tproxy_rules.nft.table import Set
from tproxy_rules.revoke import taken
from tproxy_rules.validate import checked


class Event(StrEnum):
    ENFORCED = "enforced"
    REFUSED = "the kernel refuses it"
    LOST = "the kernel's tables are replaced"
    SLOW = "no worker reads it"
    RECONNECT = "the worker connects anew"


class Kernel:
    """The sets of both tables, changed by the same members as the real ones."""

    def __init__(self) -> None:
        self._backend = NftablesBackend()
        self._state: kernel.Desired | None = None
        self._tables: Tables = {}
        self._members: dict[str, set[str]] = {}

    def apply(self, state: kernel.Desired, event: Event) -> None:
        wanted = checked(state, self._backend._examine, self._backend._roll.examined)
        tables = self._backend._draw(wanted)
        plain = replaced(state)
        assert self._backend._roll.digest(wanted.identities) == NftablesBackend()._roll.digest(plain.identities)
        assert digest(wanted) == digest(plain)
        before = replaced(self._state) if self._state is not None else None
        assert plainly(taken(self._state, state)) == plainly(taken(before, plain))
        if event is Event.REFUSED:
            return
        if event is Event.LOST or self._tables.keys() != tables.keys():
            self._members = {name: set(one.members) for name, one in _sets(tables)}
        else:
            self._change(tables)
        self._state, self._tables = state, tables
        afresh = NftablesBackend()._draw(checked(plain))
        assert {name: table.text() for name, table in tables.items()} == {
            name: table.text() for name, table in afresh.items()
        }
        assert self._members == {name: set(one.members) for name, one in _sets(afresh)}

    def _change(self, tables: Tables) -> None:
        known, now = dict(_sets(self._tables)), dict(_sets(tables))
        self._members = {name: self._members.get(name, set()) for name in now}
        for name, one in now.items():
            if name not in known:
                self._members[name] = set(one.members)
                continue
            self._members[name] -= set(known[name].members.without(one.members))
            self._members[name] |= set(one.members.without(known[name].members))


class Worker:
    """What a worker knows: changed by the frames that the agent sends."""

    def __init__(self) -> None:
        self._sent = EMPTY
        self._decoder = SnapshotDecoder()
        self._index = EndpointIndex((), {})

    def publish(self, snapshot: PolicySnapshot, event: Event) -> None:
        if event is Event.SLOW:
            return
        if event is Event.RECONNECT:
            self._sent, self._decoder = EMPTY, SnapshotDecoder()
        (message,) = framing.from_agent().feed(framing.encode(delta(self._sent, snapshot)))
        assert isinstance(message, SnapshotDelta)
        known = self._decoder.open(message)
        self._sent = snapshot
        self._index = EndpointIndex(known.endpoints, known.identities, self._index)
        (whole,) = framing.from_agent().feed(framing.encode(delta(EMPTY, snapshot)))
        assert isinstance(whole, SnapshotDelta)
        fresh = SnapshotDecoder().open(whole)
        assert dict(known.identities) == dict(snapshot.identities) == dict(fresh.identities)
        assert known == fresh
        index = EndpointIndex(fresh.endpoints, dict(fresh.identities))
        assert [self._index.identity(one) for one in PEERS] == [index.identity(one) for one in PEERS]


def replaced(state: kernel.Desired) -> kernel.Desired:
    """The same state without history."""
    return replace(state, identities=tuple(sorted(state.identities)))


def plainly(change: Any) -> tuple[Any, ...]:
    return change.left, change.moved, change.judged


def _sets(tables: Tables) -> list[tuple[str, Set]]:
    return [(f"{family} {name}", one) for family, table in tables.items() for name, one in table.sets.items()]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.lists(st.sampled_from([*Event, Event.ENFORCED, Event.ENFORCED, Event.ENFORCED]), min_size=4, max_size=16),
    st.sampled_from((4, 64, versioned.LEAST)),
)
def test_changes_give_what_the_whole_gives(seed: int, events: list[Event], least: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(versioned, "LEAST", least)  # copies without history in between
        life, agent, world, worker = Life(seed), Agent(), Kernel(), Worker()
        for revision, event in enumerate(events, 1):
            agent.cluster_state.apply(life.next())
            _, _, found = agent.draw(services=False)
            fresh = Agent()
            shuffled = Random(seed).sample(list(life.resources.values()), len(life.resources))
            fresh.cluster_state.apply(map(Upsert, shuffled))
            _, _, new = fresh.draw(services=False)
            _same(found, new)
            world.apply(found.kernel, event)
            worker.publish(found.at(revision).workers, event)


def _same(found: DesiredState, new: DesiredState) -> None:
    assert found.equals(new)
    assert sorted(found.kernel.identities) == sorted(new.kernel.identities)
    assert dict(found.workers.identities) == dict(new.workers.identities)


def pod(name: str, *addresses: str, **labels: str) -> Upsert:
    return Upsert(resources.Pod("red", name, "n2", addresses, labels, phase="Running"))


def test_an_address_that_changes_hands_in_one_round() -> None:
    """Its old identity is freed in the same round, and given to another address."""
    agent, world, worker = Agent(), Kernel(), Worker()
    batches: tuple[list[Change], ...] = (
        [pod("a", "10.0.2.10", app="a"), pod("b", "10.0.2.11", app="b")],
        [resources.Delete(resources.ResourceKey("Pod", "red", "a")), pod("c", "10.0.2.10", app="c"),
         pod("b", "10.0.2.12", app="a")],
        [pod("c", "10.0.2.11", app="b"), pod("b", "10.0.2.10", app="b")],
        [pod("b", "10.0.2.11", app="b")],  # both claim it
        [resources.Delete(resources.ResourceKey("Pod", "red", "c"))],
    )  # fmt: skip
    seen = []
    for revision, batch in enumerate(batches, 1):
        agent.cluster_state.apply(batch)
        view, _, found = agent.draw(services=False)
        world.apply(found.kernel, Event.ENFORCED)
        worker.publish(found.at(revision).workers, Event.ENFORCED)
        owner = view.by_prefix.get("10.0.2.10/32")
        seen.append(view.identities[owner].labels.get("k8s", "app") if owner is not None else None)
    assert seen == ["a", "c", "b", None, None]


@pytest.mark.parametrize("count", [1, 255])
def test_a_change_looks_at_nothing_else(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large cluster no layer copies or iterates over the prefixes when some pods change."""
    agent, world = Agent(), NftablesBackend()
    agent.cluster_state.apply(
        [pod(f"p{number}", f"10.1.{number >> 8}.{number & 255}", app="a") for number in range(5000)]
    )

    def follow(revision: int, before: PolicySnapshot) -> PolicySnapshot:
        _, _, found = agent.draw(services=False)
        worker_frame = delta(before, found.at(revision).workers)
        wanted = checked(found.kernel, world._examine, world._roll.examined)
        tables.append(world._draw(wanted))
        members = [(one, dict(_sets(tables[-2]))[name]) for name, one in _sets(tables[-1])] if tables[:-1] else []
        moved.append(sum(len([*new.members.without(old.members)]) for new, old in members))
        states.append(found.kernel)
        opened = decoder.open(worker_frame)
        indexes.append(EndpointIndex(opened.endpoints, opened.identities, indexes[-1]))
        taken(states[-2], states[-1]) if states[:-1] else None
        return found.at(revision).workers

    tables: list[Tables] = []
    states: list[kernel.Desired] = []
    moved: list[int] = []
    decoder, indexes = SnapshotDecoder(), [EndpointIndex((), {})]
    snapshot = follow(1, EMPTY)

    def whole(_: object) -> None:
        raise AssertionError("the whole mapping is read")

    monkeypatch.setattr(versioned.VersionedMap, "copy", whole)
    agent.cluster_state.apply([pod(f"p{number}", f"10.2.0.{number}", app="b") for number in range(count)])
    follow(2, snapshot)
    assert moved[-1] == count
