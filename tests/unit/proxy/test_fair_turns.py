"""Under load the client with the least recent use is served first, however many sockets the others have.

A turn of 0 ns makes one call: the order of service is then deterministic on any machine.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from time import monotonic_ns

import msgspec

from l7proxy.link.messages import PolicySnapshot
from l7proxy.proxy.policy_store import PolicyIndex
from l7proxy.proxy.server.poller import IN, Poller
from l7proxy.proxy.server.shares import CAREFUL_READ, HALVED, LEAST_READ, LONG, READ, Share, Shares
from tests.unit.proxy.stage import CLIENT, backend, gets, request, snapshot, stage, web

TURNS = 6


class Asker:
    """A socket that is always ready; records the share it was served for."""

    def __init__(self, share: Share, served: list[Share], cost: int) -> None:
        self.share, self._served, self._cost = share, served, cost

    def ready(self, events: int) -> None:
        self._served.append(self.share)
        self.share.age(monotonic_ns())
        self.share.spent(self._cost)


@asynccontextmanager
async def polled(*crowd: tuple[Share, int, int]) -> AsyncIterator[tuple[Poller, list[Share]]]:
    """A poller with one call per turn, for (share, number of ready sockets, cost of a call in ns) each."""
    poller, served = Poller(), list[Share]()
    poller.turn = 0
    pairs = []
    for share, count, cost in crowd:
        for _ in range(count):
            near, far = socket.socketpair()
            far.send(b"x")
            poller.watch(near.fileno(), IN, Asker(share, served, cost))
            pairs += [near, far]
    yield poller, served
    poller.close()
    for sock in pairs:
        sock.close()


async def test_one_socket_of_one_owner_is_served_as_often_as_hundreds_of_another() -> None:
    many, one = Share(), Share()
    async with polled((many, 300, 1_000_000), (one, 1, 1_000_000)) as (poller, served):
        for _ in range(2 * TURNS):
            poller._poll()
        assert served.count(one) >= TURNS - 1


async def test_who_asks_for_little_waits_for_one_call_of_whoever_asks_for_much() -> None:
    heavy, light = Share(), Share()
    async with polled((heavy, 100, 50_000_000), (light, 1, 0)) as (poller, served):
        for _ in range(TURNS):
            poller._poll()
        assert served[0] is heavy  # nothing was known yet
        assert served[1:] == [light] * (TURNS - 1)


async def test_who_has_the_worker_alone_has_all_of_it() -> None:
    alone = Share()
    async with polled((alone, 3, 1_000_000_000)) as (poller, served):
        for _ in range(TURNS):
            poller._poll()
        assert served == [alone] * TURNS


async def test_the_loop_has_its_turn_between_two_of_ours() -> None:
    async with polled((Share(), 200, 0)) as (_, served):
        seen = []
        for _ in range(20):
            await asyncio.sleep(0)
            seen.append(len(served))
        assert max(after - before for before, after in pairwise(seen)) <= 1


async def test_a_new_connection_does_not_wait_behind_those_of_another_client() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        poller = on.ctx.poller
        hostile = [await on.dial() for _ in range(100)]
        await on.until(lambda: len(on.ctx.policy_store) == len(hostile))
        on.ctx.shares.of(1).age(monotonic_ns())
        on.ctx.shares.of(1).used = 1 << 40  # it has used much; the client is endpoint 1
        assert poller._epoll is not None
        poller.loop.remove_reader(poller._epoll.fileno())
        poller.turn = 400_000
        for sock in hostile:
            sock.send(request())
        more = [await on.dial() for _ in range(100)]
        _, writer = await on.client("127.0.0.9")
        writer.write(request())
        innocent = on.ctx.shares.of("127.0.0.9")
        for _ in range(50):
            poller._poll()
            if innocent.sessions:
                break
        assert innocent.sessions == 1
        assert on.ctx.shares.of(1).arriving >= len(more) // 2
        poller.loop.add_reader(poller._epoll.fileno(), poller._poll)
        await on.until(lambda: not poller._waiting)
        for sock in (*hostile, *more):
            sock.close()


async def test_what_takes_long_is_read_in_smaller_pieces() -> None:
    share = Share()
    for _ in range(20):
        read(share, 40 * LONG)
    share.age(1 << HALVED)
    assert share.requests.read == LEAST_READ
    for _ in range(20):  # a call that reads nothing, or less than allowed, gives no information
        share.spent(LONG // 10)
        read(share, LONG // 10, LEAST_READ - 1)
    assert share.requests.read == LEAST_READ
    quick(share, 20)
    assert share.requests.read == 2 * LEAST_READ, "once in a period"
    for period in range(2, 20):
        share.age(period << HALVED)
        quick(share, 20)
    assert share.requests.read == CAREFUL_READ
    share.age(1000 << HALVED)
    quick(share, 20)
    assert share.requests.read == READ


def read(share: Share, nanoseconds: int, count: int | None = None) -> None:
    """Reads like a socket stream: as much as allowed, unless `count` is given."""
    share.reading = share.requests
    share.requests.got = share.requests.read if count is None else count
    share.spent(nanoseconds)


def quick(share: Share, times: int) -> None:
    for _ in range(times):
        read(share, LONG // 10)


async def test_bulk_is_read_in_large_pieces_at_once() -> None:
    share = Share()
    quick(share, 5)
    assert share.requests.read == READ


async def test_what_was_used_is_forgotten_with_time() -> None:
    share = Share()
    share.age(5 << HALVED)
    share.spent(1 << 20)
    assert share.lately(5 << HALVED) == 1 << 20
    assert share.lately(7 << HALVED) == 1 << 18
    assert share.lately(500 << HALVED) == 0


def test_all_addresses_of_a_pod_are_one_share() -> None:
    """A pod with two families must not get twice the share of another."""
    made = snapshot()
    first = msgspec.structs.replace(made.endpoints[0], addresses=(CLIENT, "fd00::5"))
    index, shares = PolicyIndex(msgspec.structs.replace(made, endpoints=(first, *made.endpoints[1:]))), Shares()
    assert shares.of(index.owner(CLIENT)) is shares.of(index.owner("fd00::5"))
    assert shares.of(index.owner(CLIENT)) is not shares.of(index.owner("127.0.0.3"))


def test_who_is_no_pod_of_this_node_is_known_by_address_and_the_world_by_its_64() -> None:
    identities = {"fd00::/16": 2, "fd00:1::7/128": 300, "fd00:1::8/128": 301}
    index = PolicyIndex(PolicySnapshot(1, (), identities))
    assert index.owner("fd00::1") == index.owner("fd00::2:0:0:9") == "fd00::/64"
    assert index.owner("fd00:1::7") == "fd00:1::7" != index.owner("fd00:1::8")
    assert index.owner("192.0.2.1") == "192.0.2.1"


def test_shares_of_who_is_away_are_not_kept_for_ever() -> None:
    shares = Shares()
    shares.of("stays").sessions = 1
    kept = shares.of("stays")
    for number in range(20_000):
        shares.of(str(number))
    assert shares.of("stays") is kept
    assert len(shares._known) <= 4096
