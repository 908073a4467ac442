"""The bounded queue of records: order, batches, and every dropped record counted once."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from l7proxy.flows.records import Connection
from l7proxy.link.outbox import PLENTY, Outbox
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict


def record(number: int) -> Connection:
    conn = Conn("10.0.0.1", 1000, "10.0.0.2", 80, 300, 301)
    return Connection(number, conn, PolicyVerdict(Verdict.DROPPED, Direction.INGRESS, reason="no"))


@given(st.lists(st.sampled_from(["put", "take", "return"]), max_size=80), st.integers(1, 5), st.integers(1, 4))
def test_what_is_put_is_taken_in_order_or_counted_as_lost(steps: list[str], capacity: int, batch: int) -> None:
    outbox = Outbox(capacity=capacity, batch=batch)
    put, sent, lost = 0, list[int](), 0
    for step in steps:
        if step == "put":
            outbox.put(record(put))
            put += 1
        elif (flows := outbox.take()) is not None:
            if step == "return":
                outbox.put_back(flows)
            else:
                sent += [one.time_ns for one in flows.records()]
                lost += flows.lost
        assert len(outbox) <= capacity
    while (flows := outbox.take()) is not None:
        sent += [one.time_ns for one in flows.records()]
        lost += flows.lost
    assert sent == sorted(set(sent))
    assert len(sent) + lost == put
    assert outbox.lost == lost


def test_a_full_box_gives_back_the_oldest() -> None:
    outbox = Outbox(capacity=2, batch=2)
    for number in range(2):
        outbox.put(record(number))
    flows = outbox.take()
    assert flows is not None
    for number in (2, 3):
        outbox.put(record(number))
    outbox.put_back(flows)
    again = outbox.take()
    assert again is not None
    assert ([one.time_ns for one in again.records()], again.lost, outbox.lost) == ([0, 1], 2, 2)


async def test_plenty_does_not_wait_and_a_few_wait_a_little() -> None:
    outbox = Outbox()
    filled = asyncio.ensure_future(outbox.filled(60))  # noqa: TID251 -- awaited below
    for number in range(PLENTY):
        await asyncio.sleep(0)
        assert not filled.done()
        outbox.put(record(number))
    async with asyncio.timeout(5):
        await filled
    outbox.take()
    outbox.put(record(0))
    async with asyncio.timeout(5):
        await outbox.filled(0.01)


async def test_it_is_settled_when_all_that_was_put_is_sent() -> None:
    outbox = Outbox(batch=1)
    await outbox.settled()
    for number in range(2):
        outbox.put(record(number))
    for last in (False, True):
        assert outbox.take() is not None
        outbox.sent()
        settled = asyncio.ensure_future(outbox.settled())  # noqa: TID251 -- awaited or cancelled below
        await asyncio.sleep(0)
        assert settled.done() is last
        settled.cancel()
