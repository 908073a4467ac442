"""The ring: no writer waits for a reader, and every lost flow is counted."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.errors import ConfigError
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.ring import Reader, Ring
from tests.support.rings import SECOND, flow, numbers, ring_of


def lost(items: list[Event]) -> int:
    return sum(item.lost for item in items)


@pytest.mark.parametrize("capacity", [1, 3, 7, 4095, 65535])
def test_a_capacity_is_one_less_than_a_power_of_two(capacity: int) -> None:
    assert Ring(capacity).capacity == capacity


@pytest.mark.parametrize("capacity", [-1, 0, 2, 4, 4096, 131071])
def test_other_capacities_are_refused(capacity: int) -> None:
    with pytest.raises(ConfigError, match=f"{capacity}: must be a power of two minus one"):
        Ring(capacity)


@given(
    steps=st.lists(st.one_of(st.integers(1, 40), st.just("read"), st.just("sip")), max_size=40),
    capacity=st.sampled_from([1, 3, 7, 15]),
)
def test_every_event_is_read_once_in_order_or_counted_as_lost(steps: list[int | str], capacity: int) -> None:
    ring = Ring(capacity, clock=itertools.count().__next__)  # a second and more passes between two looks
    reader = Reader(ring)
    written, got, missed = 0, list[int](), 0
    for step in [*steps, "read"]:
        if isinstance(step, int):
            for _ in range(step):
                ring.append(flow(written))
                written += 1
        else:
            items = reader.batch(2 if step == "sip" else 1000)
            before = len(got) + missed
            missed += lost(items)
            got += numbers(items)
            assert not lost(items) or items[0].lost, "what was lost is told before what came after it"
            assert numbers(items) == list(range(before + lost(items), len(got) + missed))
    assert len(got) + missed == written
    assert ring.lost == missed
    assert ring.seen == written
    assert len(ring) == min(written, capacity)


@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=10))
def test_readers_do_not_know_one_another(counts: list[int]) -> None:
    ring = Ring(15)
    fast, slow = Reader(ring), Reader(ring)
    written = 0
    fast_got: list[int] = []
    for count in counts:
        for _ in range(count):
            ring.append(flow(written))
            written += 1
            fast_got += numbers(fast.batch())
    assert fast_got == list(range(written))
    items = slow.batch()
    assert numbers(items) == list(range(max(0, written - 15), written))
    assert lost(items) == max(0, written - 15)


def test_what_was_lost_before_the_ring_is_an_event_of_its_own() -> None:
    ring = ring_of(2)
    reader = Reader(ring, start=0)
    ring.append_lost(0, time_ns=0)
    ring.append_lost(7, time_ns=5 * SECOND)
    items = reader.batch()
    assert numbers(items) == [0, 1]
    assert items[2] == Lost(7, "OBSERVER_EVENTS_QUEUE", 5 * SECOND, "node")
    assert (ring.seen, ring.lost) == (2, 7)


def test_a_reader_is_told_of_losses_once_a_second_with_their_sum() -> None:
    now = [0.0]
    ring = Ring(3, node_name="node", clock=lambda: now[0])
    reader = Reader(ring)
    told = []
    for second in range(1, 7):
        now[0] += 0.4
        for _ in range(5):
            ring.append(flow(second))
        told += [item for item in reader.batch() if isinstance(item, Lost)]
    assert [one.lost for one in told] == [2, 6], "at once, then what came in the second that followed"
    assert (told[1].first_ns, told[1].time_ns) == (2 * SECOND, 4 * SECOND)
    (rest,) = reader.rest()
    assert (rest.lost, reader.lost, ring.lost) == (4, 12, 12) and reader.rest() == []


async def test_a_reader_is_told_of_losses_even_when_no_flow_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l7proxy.flows.ring.LOSSES_EVERY", 0.05)
    ring = Ring(3)
    reader = Reader(ring)
    lost = 0
    async with asyncio.timeout(20):
        for _ in range(2):
            for _ in range(10):
                ring.append(flow(1))
            lost += sum(item.lost for item in reader.batch())
        while lost < 14:
            lost += sum(item.lost for item in await reader.next_batch())


async def test_what_is_lost_before_the_ring_is_told_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l7proxy.flows.ring.LOSSES_EVERY", 0.05)
    ring = Ring(1023)
    reader = Reader(ring)
    for number in range(1, 101):
        ring.append_lost(1, time_ns=number)
        ring.append_lost(2, time_ns=number, source="PERF_EVENT_RING_BUFFER")
    assert ring.lost == 300 and len(ring) < 10, "a storm of losses does not push flows out of the ring"
    told: dict[str, int] = {}
    async with asyncio.timeout(20):
        while sum(told.values()) < 300:
            for item in await reader.next_batch():
                assert isinstance(item, Lost)
                told[item.source] = told.get(item.source, 0) + item.lost
    assert told == {"OBSERVER_EVENTS_QUEUE": 100, "PERF_EVENT_RING_BUFFER": 200}


async def test_readers_wait_until_something_comes() -> None:
    ring = Ring(15)
    readers = [Reader(ring) for _ in range(5)]
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(reader.next_batch(), name="reader") for reader in readers]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        ring.append(flow(0))
        for task in waiting:
            assert numbers(await task) == [0]


@given(st.sampled_from([1, 3, 7]), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_stretch_is_its_events_one_by_one(capacity: int, written: int, start: int, end: int) -> None:
    ring = Ring(capacity)
    for number in range(written):
        ring.append(flow(number))
    if ring.oldest <= start <= end <= ring.end:
        assert ring.between(start, end) == [ring.at(number) for number in range(start, end)]
    else:
        with pytest.raises(IndexError):
            ring.between(start, end)


@given(st.sampled_from([1, 3, 7]), st.lists(st.integers(0, 20), max_size=8))
def test_many_at_once_are_as_many_one_by_one(capacity: int, batches: list[int]) -> None:
    at_once, single = Ring(capacity), Ring(capacity)
    flows = [flow(number) for number in range(sum(batches))]
    rest = iter(flows)
    for count in batches:
        batch = [next(rest) for _ in range(count)]
        at_once.extend(batch)
        for one in batch:
            single.append(one)
        assert list(at_once.newest_first()) == list(single.newest_first())
        assert (at_once.end, at_once.oldest, at_once.seen) == (single.end, single.oldest, single.seen)
