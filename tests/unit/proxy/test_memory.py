"""A worker's memory for its clients is bounded: above the limits a client is not read, then refused, then closed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from l7proxy.proxy.server.memory import PATIENCE, Memory
from l7proxy.proxy.server.shares import Share
from tests.unit.proxy.stage import Stage, answer, backend, gets, request, snapshot, stage

MIB = 1 << 20
BIG = bytes(4 * MIB)
CONNECTIONS = 40


class Connection:
    """A connection as the memory accounting sees it."""

    def __init__(self, memory: Memory, share: Share) -> None:
        self._memory, self._share = memory, share
        self.held, self.reads, self.ended = 0, True, False
        share.sessions += 1

    def holds(self, count: int) -> None:
        before, self.held = self.held, count
        self._memory.change(self._share, self, before)
        if self._share.full and self._memory.must_stop(self._share, self):
            self.reads = False
            self._share.stopped[self] = None

    def read_on(self) -> None:
        self.reads = True

    def too_greedy(self) -> None:
        self.ended = True
        self._share.stopped.pop(self, None)
        self.holds(0)


def test_an_endpoint_that_holds_too_much_is_read_on_when_it_has_room_again() -> None:
    memory, share = Memory(16 * MIB), Share()
    greedy, modest = Connection(memory, share), Connection(memory, share)
    greedy.holds(4 * MIB + 1)
    modest.holds(1)
    assert (share.full, greedy.reads, modest.reads) == (True, False, True)
    greedy.holds(7 * MIB // 2)
    assert (share.full, greedy.reads) == (True, False), "not at the first byte that goes"
    greedy.holds(3 * MIB - 1)
    assert (share.full, greedy.reads) == (False, True)


def test_when_the_worker_is_full_it_is_those_who_hold_most_that_stop() -> None:
    memory = Memory(16 * MIB)
    many = [Connection(memory, Share()) for _ in range(7)]
    for each in many[:6]:
        each.holds(3 * MIB)
    assert not many[5].reads
    many[6].holds(MIB)
    assert many[6].reads


def test_who_holds_too_much_for_long_is_ended_the_greediest_first() -> None:
    memory, share = Memory(16 * MIB), Share()
    most, less = Connection(memory, share), Connection(memory, share)
    less.holds(2 * MIB)
    most.holds(3 * MIB)
    memory.look(0.0)
    memory.look(PATIENCE)
    assert memory.ended == 0
    memory.look(PATIENCE + 1)
    assert most.ended and not less.ended
    assert (memory.ended, memory.held, share.held) == (1, 2 * MIB, 2 * MIB)


def test_nothing_is_left_of_who_is_gone() -> None:
    memory, share = Memory(16 * MIB), Share()
    one = Connection(memory, share)
    one.holds(9 * MIB)
    memory.look(0.0)
    one.holds(0)
    memory.look(1.0)
    assert (memory.held, share.held, share.full) == (0, 0, False)
    assert not memory._shares and not memory._full


async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BIG) + BIG)
        await writer.drain()


async def unread(on: Stage) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Clients that request much and read nothing."""
    found = []
    for _ in range(CONNECTIONS):
        with contextlib.suppress(OSError):  # it is refused already
            reader, writer = await on.client()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(request())
            found.append((reader, writer))
            await asyncio.sleep(0)
    return found


@pytest.mark.parametrize("splices", [False, True])
async def test_clients_that_do_not_read_hold_no_more_than_their_share(splices: bool) -> None:
    async with backend(pours) as server, stage(server, snapshot(gets())) as on:
        on.ctx.pipes._limit = 64 if splices else 0
        memory = on.ctx.memory = Memory(4 * MIB)
        clients = await unread(on)
        await on.until(lambda: len(on.kinds().replace("s", "")) == CONNECTIONS)
        await asyncio.sleep(0.3)
        share = on.ctx.shares.of(1)
        assert share.held <= memory.part + CONNECTIONS * (64 << 10)
        assert memory.held == share.held
        if share.full:
            with pytest.raises(ConnectionResetError):
                await (await on.client())[0].read()
            assert "buffer more than their share of 4 MiB" in on.records[-1].policy_verdict.reason
            assert memory.refused
        other, writer = await on.client("127.0.0.9")
        writer.write(request())
        await on.until(lambda: on.ctx.shares.of("127.0.0.9").sessions)
        for _, each in (*clients, (other, writer)):
            each.transport.abort()
        await on.settled()
        assert memory.held == share.held == 0
        assert not share.stopped


async def test_a_client_that_reads_slowly_gets_all_of_it() -> None:
    async with backend(pours) as server, stage(server, snapshot(gets())) as on:
        on.ctx.pipes._limit = 0
        on.ctx.memory = Memory(1 * MIB)
        clients = await unread(on)
        served = clients[: on.kinds().count("q")] or clients[:1]
        await asyncio.sleep(0.1)
        for reader, writer in served[:8]:
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert (await answer(reader))[1] == BIG
            writer.transport.abort()


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nX: " + b"x" * 3000, b"PRI * HT"], ids=["HTTP/1", "preface"])
async def test_what_the_first_read_leaves_with_the_gate_counts_at_once(first: bytes) -> None:
    """Also if this read has told the protocol, so that another gate keeps the bytes."""
    async with backend(never) as server, stage(server, snapshot(gets())) as on:
        many = [await on.client() for _ in range(5)]
        for _, writer in many:
            writer.write(first)
        await on.until(lambda: on.ctx.memory.held == len(many) * len(first))
        writer.write(b"\r\n\r\n")
        await on.until(lambda: on.ctx.memory.held == (len(many) - 1) * len(first))


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
