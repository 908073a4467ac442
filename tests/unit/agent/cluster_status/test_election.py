"""One writer: agents over one Lease, with a clock of the test's own."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.agent.cluster_status.election import DURATION, LONGEST, RENEW, STEP_DOWN, Election, Record, Wait, Write


class Server:
    """The Lease, which only a write of its present version replaces."""

    def __init__(self) -> None:
        self.record = Record()

    def write(self, record: Record) -> Record | None:
        if record.version != self.record.version:
            return None
        self.record = replace(record, version=str(int(record.version or "0") + 1), acquired=record.acquired or "now")
        return self.record


class Agent:
    def __init__(self, server: Server, node: str, number: int = 0, **more: object) -> None:
        self.server, self.election = server, Election(node, f"{node}_{number}", spread=lambda most: 0.0)

    def watch(self, now: float) -> None:
        self.election.observe(self.server.record, now)

    def act(self, now: float) -> None:
        while isinstance(action := self.election.next(now), Write):
            written = self.server.write(action.record)
            if written is None:
                self.election.failed(now)
            else:
                self.election.written(written, now)


def test_the_first_one_leads_and_renews_at_its_pace() -> None:
    server = Server()
    agent = Agent(server, "n1")
    assert isinstance(agent.election.next(0.0), Wait), "nothing is known yet"
    agent.watch(0.0)
    agent.act(0.0)
    assert agent.election.leading(0.0)
    assert server.record == Record("n1_0", "1", DURATION, 0, "now")
    assert agent.election.next(1.0) == Wait(RENEW)
    agent.act(RENEW)
    assert server.record.version == "2"
    assert server.record.transitions == 0


def test_others_wait_for_the_whole_duration_and_take_over() -> None:
    server = Server()
    first, second = Agent(server, "n1"), Agent(server, "n2")
    first.watch(0.0)
    first.act(0.0)
    second.watch(0.5)
    second.act(DURATION)
    assert server.record.holder == "n1_0"
    second.act(DURATION + 0.5)
    assert server.record == Record("n2_0", "2", DURATION, 1, "now")
    assert second.election.leading(DURATION + 0.5)
    assert not first.election.leading(STEP_DOWN), "it stopped long before"
    first.watch(DURATION + 1)
    assert isinstance(first.election.next(DURATION + 1), Wait)


def test_a_lease_that_is_seen_before_the_refusal_of_our_own_write_is_left_alone() -> None:
    server = Server()
    first, second = Agent(server, "n1"), Agent(server, "n2")
    first.watch(0.0)
    second.watch(0.0)
    first.act(0.0)
    assert isinstance(late := second.election.next(0.1), Write)
    second.watch(0.2)  # the watch is faster than the answer
    assert server.write(late.record) is None
    second.election.failed(0.3)
    assert second.election.next(DURATION) == Wait(DURATION + 0.2)


def test_a_renewal_that_is_seen_starts_the_wait_again() -> None:
    server = Server()
    first, second = Agent(server, "n1"), Agent(server, "n2")
    for now in (0.0, 20.0, 40.0, 60.0, 80.0):
        first.watch(now)
        first.act(now)
        second.watch(now + 1)
        second.act(now + 1)
    assert server.record.holder == "n1_0"
    assert second.election.next(82.0) == Wait(81.0 + DURATION)


def test_a_released_lease_and_one_of_our_own_earlier_process_are_taken_at_once() -> None:
    server = Server()
    first = Agent(server, "n1")
    first.watch(0.0)
    first.act(0.0)
    after = Agent(server, "n1", number=1)
    after.watch(1.0)
    after.act(1.0)
    assert server.record.holder == "n1_1"
    released = after.election.release()
    assert released is not None
    server.write(released)
    other = Agent(server, "n2")
    other.watch(2.0)
    other.act(2.0)
    assert server.record.holder == "n2_0"
    assert first.election.release() is not None, "it does not know yet; its version is old, so the write fails"
    assert server.write(first.election.release() or Record()) is None


def test_the_holder_stops_when_it_cannot_renew() -> None:
    server = Server()
    agent = Agent(server, "n1")
    agent.watch(0.0)
    agent.act(0.0)
    agent.election.failed(RENEW)
    agent.election.failed(RENEW + 4)
    assert agent.election.leading(STEP_DOWN - 0.1)
    assert not agent.election.leading(STEP_DOWN)


def test_a_deleted_lease_ends_the_lead_and_is_made_again() -> None:
    server = Server()
    agent = Agent(server, "n1")
    agent.watch(0.0)
    agent.act(0.0)
    server.record = Record()
    agent.watch(1.0)
    assert not agent.election.leading(1.0)
    agent.act(1.0)
    assert agent.election.leading(1.0)


def test_a_lease_that_asks_for_a_year() -> None:
    server = Server()
    server.record = Record("stranger", "7", 31_536_000)
    agent = Agent(server, "n1")
    agent.watch(0.0)
    assert agent.election.next(0.0) == Wait(float(LONGEST))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(2, 5))
def test_never_two_leaders_and_never_long_none(seed: int, count: int) -> None:
    """Agents whose watches lag, whose writes are lost, and who die."""
    chance, server = random.Random(seed), Server()
    agents = [Agent(server, f"n{one}") for one in range(count)]
    dead: set[int] = set()
    none_since = 0.0
    for step in range(400):
        now = step * 1.0
        for number, agent in enumerate(agents):
            if number in dead:
                continue
            if chance.random() < 0.8:
                agent.watch(now)
            if chance.random() < 0.7:
                agent.act(now)
        leaders = [one for number, one in enumerate(agents) if number not in dead and one.election.leading(now)]
        assert len(leaders) <= 1
        none_since = none_since if not leaders else now
        assert now - none_since <= 2 * DURATION
        if step == 200:
            dead.update(number for number, one in enumerate(agents[:-1]) if one in leaders)
