"""What observers get: requests on the socket are validated before they are answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from l7proxy.errors import ConfigError
from l7proxy.flows import observer
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.event_filter import Keep, everything
from l7proxy.flows.flow import Flow
from l7proxy.flows.observer import Request
from l7proxy.flows.ring import Ring
from tests.support.rings import SECOND, flow, numbers, ring_of


async def test_a_request_is_answered_event_by_event() -> None:
    ring = Ring(15)
    for number in range(6):
        ring.append(Flow(uuid=str(number), verdict="DROPPED" if number % 2 else "FORWARDED"))
    asked = {"method": "observe", "last": 2, "filters": {"whitelist": [{"verdict": ["DROPPED"]}]}}
    assert [item.uuid async for item in observer.observe(ring, asked) if isinstance(item, Flow)] == ["3", "5"]
    assert len([item async for item in observer.observe(ring, {})]) == 6


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ({"lats": 1}, "unknown field 'lats'"),
        ({"last": -1}, "last"),
        ({"last": "many"}, "last"),
        ({"last": True}, "last"),
        ({"last": 1.5}, "last"),
        ({"first": 1, "follow": True}, "first"),
        ({"first": 1, "last": 1}, "first"),
        ({"since": "yesterday"}, "since"),
        ({"until": []}, "until"),
        ({"filters": []}, "filters"),
        ({"filters": {"whitelist": [{"verdict": ["NO"]}]}}, "verdict"),
        ({"filters": {"whitelist": [7]}}, "whitelist"),
    ],
)
def test_a_wrong_request_names_its_field(asked: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        observer.observe(Ring(1), asked)


async def collect(ring: Ring, keep: Keep = everything, **asked: Any) -> list[int]:
    return numbers([item async for item in observer.events(ring, Request(keep, **asked))])


def dropped(event: Event) -> bool:
    flow = event.flow()
    return flow is not None and flow.verdict == "DROPPED"


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
    following = observer.events(ring, Request(dropped, last=1, follow=True))
    async with asyncio.timeout(10):
        async for item in following:
            assert isinstance(item, Flow)
            got.append(int(item.uuid))
            if len(got) == 1:
                for number in range(10, 20):
                    ring.append(flow(number))
            if len(got) == 4:
                break
    await following.aclose()
    assert got == [9, 12, 15, 18]


async def test_a_slow_follower_is_told_how_much_it_lost() -> None:
    ring = Ring(7)
    following = observer.events(ring, Request(follow=True, since_ns=0))
    ring.append(flow(0))
    assert numbers([await anext(following)]) == [0]
    for number in range(1, 101):
        ring.append(flow(number))
    items = [await anext(following) for _ in range(8)]
    await following.aclose()
    assert items[0] == Lost(93, "HUBBLE_RING_BUFFER", 94 * SECOND)
    assert numbers(items) == list(range(94, 101))


async def test_a_reader_of_the_past_ends_although_the_writer_goes_on() -> None:
    ring = ring_of(15)
    count = 0
    async with asyncio.timeout(10):
        async for _ in observer.events(ring, Request()):
            ring.append(flow(count))
            count += 1
            assert count < 100


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
        found = [item async for item in observer.events(ring, Request(lambda one: numbers([one]) == [1022], last=5))]
    assert turns == 4
    assert numbers(found) == [1022]
