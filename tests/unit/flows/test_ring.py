"""The ring: no writer waits for a reader, and every lost flow is counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.errors import ConfigError
from l7proxy.flows import ring as flow_ring
from l7proxy.flows import timestamp
from l7proxy.flows.flow import Flow, Lost
from l7proxy.flows.ring import Reader, Ring
from l7proxy.flows.template import Item

SECOND = timestamp.SECOND


def flow(number: int) -> Flow:
    return Flow(
        uuid=str(number), time=timestamp.text(number * SECOND), verdict="DROPPED" if number % 3 == 0 else "FORWARDED"
    )


def ring_of(count: int, capacity: int = 15) -> Ring:
    ring = Ring(capacity, node_name="node")
    for number in range(count):
        ring.append(flow(number))
    return ring


def numbers(items: list[Item]) -> list[int]:
    return [int(item.uuid) for item in items if isinstance(item, Flow)]


def lost(items: list[Item]) -> int:
    return sum(item.count for item in items if isinstance(item, Lost))


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
    ring = Ring(capacity)
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
            assert not lost(items) or isinstance(items[0], Lost), "what was lost is told before what came after it"
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
    ring.append_lost(0, time="t")
    ring.append_lost(7, time="2025-11-23T20:00:00Z")
    items = reader.batch()
    assert numbers(items) == [0, 1]
    assert items[2] == Lost(7, "OBSERVER_EVENTS_QUEUE", "2025-11-23T20:00:00Z", "2025-11-23T20:00:00Z", "node")
    assert (ring.seen, ring.lost) == (2, 7)


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


async def collect(ring: Ring, keep: flow_ring.Keep = lambda _: True, **asked: Any) -> list[int]:
    return numbers([item async for item in flow_ring.observe(ring, keep, **asked)])


def dropped(one: Flow) -> bool:
    return one.verdict == "DROPPED"


async def test_what_an_observer_gets() -> None:
    ring = ring_of(10)
    assert await collect(ring) == list(range(10)), "without a wish: all there is"
    assert await collect(ring, last=3) == [7, 8, 9]
    assert await collect(ring, dropped, last=2) == [6, 9], "the newest that match, oldest first"
    assert await collect(ring, dropped, last=100) == [0, 3, 6, 9]
    assert await collect(ring, first=2) == [0, 1]
    assert await collect(ring, dropped, first=2) == [0, 3]
    assert await collect(ring, since_ns=7 * SECOND) == [7, 8, 9]
    assert await collect(ring, since_ns=4 * SECOND, last=2) == [4, 5], "since says where to begin, last is a limit"
    assert await collect(ring, until_ns=2 * SECOND) == [0, 1, 2]
    assert await collect(ring, until_ns=5 * SECOND, last=2) == [4, 5]
    assert await collect(ring, since_ns=2 * SECOND, until_ns=3 * SECOND) == [2, 3]


async def test_an_overtaken_ring_begins_with_what_it_still_has() -> None:
    assert await collect(ring_of(40)) == list(range(25, 40))


async def test_following_gives_what_comes_next_after_what_was_asked_for() -> None:
    ring = ring_of(10)
    got: list[int] = []
    following = flow_ring.observe(ring, dropped, last=1, follow=True)
    async with asyncio.timeout(10):
        async for item in following:
            assert isinstance(item, Flow)
            got.append(int(item.uuid))
            if len(got) == 1:
                for number in range(10, 20):
                    ring.append(flow(number))
            if len(got) == 4:
                break
    await following.aclose()  # type: ignore[attr-defined]
    assert got == [9, 12, 15, 18]


async def test_a_slow_follower_is_told_how_much_it_lost() -> None:
    ring = Ring(7)
    following = flow_ring.observe(ring, lambda _: True, follow=True, since_ns=0)
    ring.append(flow(0))
    assert numbers([await anext(following)]) == [0]
    for number in range(1, 101):
        ring.append(flow(number))
    items = [await anext(following) for _ in range(8)]
    await following.aclose()  # type: ignore[attr-defined]
    assert isinstance(items[0], Lost) and items[0].count == 93
    assert items[0].source == "HUBBLE_RING_BUFFER"
    assert numbers(items) == list(range(94, 101))


async def test_a_reader_of_the_past_ends_although_the_writer_goes_on() -> None:
    ring = ring_of(15)
    count = 0
    async with asyncio.timeout(10):
        async for _ in flow_ring.observe(ring, lambda _: True):
            ring.append(flow(count))
            count += 1
            assert count < 100


async def test_first_and_follow_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="first"):
        await collect(ring_of(1), first=1, follow=True)


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


async def test_looking_far_back_does_not_stop_the_loop_and_may_be_overtaken() -> None:
    ring = ring_of(1023, capacity=1023)
    turns = 0

    async def writer() -> None:
        nonlocal turns
        for number in range(4):
            turns += 1
            for more in range(200):
                ring.append(flow(10_000 + 200 * number + more))
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(writer(), name="writer")
        found = [item async for item in flow_ring.observe(ring, lambda one: one.uuid == "1022", last=5)]
    assert turns == 4
    assert numbers(found) == [1022]
