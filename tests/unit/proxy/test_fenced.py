"""A worker whose policy snapshot is outdated serves nothing, loses nothing, and continues with the required one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from l7proxy.errors import UpstreamError
from l7proxy.flows.records import HttpRequest
from l7proxy.link.fence import PUBLISHED, REQUIRED, stamp
from l7proxy.model.net import HostPort
from l7proxy.model.verdict import Verdict
from l7proxy.proxy.policy_store import NUDGED_AT_ONCE
from l7proxy.proxy.server.poller import IN, Poller
from l7proxy.proxy.server.steering import Plain
from l7proxy.proxy.server.upstream import UpstreamConnector
from tests.unit.proxy.stage import NOTHING, answer, backend, gets, request, snapshot, stage, web
from tests.unit.proxy.test_socket_stream import Ends
from tests.unit.proxy.test_worker import Agent, client, get, worker

QUIET = 0.1
"""Seconds in which a serving worker would answer many times."""


async def test_requests_wait_behind_the_fence_and_are_judged_by_the_new_snapshot() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        kept, new = await on.client(), await on.client()
        kept[1].write(request())
        assert (await answer(kept[0]))[0] == 200
        newer = snapshot(gets("/other"))
        on.ctx.policy_store.fence._words = (stamp(newer), stamp(newer))
        for _, writer in (kept, new):
            writer.write(request())
        late = await on.client()
        late[1].write(request())
        await asyncio.sleep(QUIET)
        assert on.kinds() == "qs"
        await on.proxy.publish(newer)
        for reader, _ in (kept, new, late):
            assert (await answer(reader))[0] == 403


async def test_what_is_cut_off_by_the_new_snapshot_moves_nothing_more() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(request())
        assert (await answer(reader))[0] == 200
        newer = snapshot(NOTHING)
        on.ctx.policy_store.fence._words = (stamp(newer), stamp(newer))
        writer.write(request())
        await asyncio.sleep(QUIET)
        await on.proxy.publish(newer)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await answer(reader)
        await on.settled()
        assert [r.policy_verdict.verdict for r in on.records if isinstance(r, HttpRequest)] == [Verdict.FORWARDED]


async def test_a_process_that_stops_within_a_turn_refuses_what_it_had_read() -> None:
    """The page changes between the turn's check and the verdict, as if the process had been stopped there."""
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        fence, newer = on.ctx.policy_store.fence, snapshot(gets())
        reader, writer = await on.client()
        writer.write(request())
        assert (await answer(reader))[0] == 200
        fence.outdates = lambda _: True  # type: ignore[method-assign, assignment]
        writer.write(request())
        assert (await answer(reader))[0] == 403
        del fence.outdates
        await on.proxy.publish(newer)
        writer.write(request())
        assert (await answer(reader))[0] == 200


async def test_connections_outlive_a_snapshot_that_is_outdated_when_it_is_applied() -> None:
    """A worker that was stopped for long reads several snapshots, the last one of which is required."""
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(request())
        assert (await answer(reader))[0] == 200
        between, last = snapshot(gets()), snapshot(gets("/other"))
        on.ctx.policy_store.fence._words = (stamp(last), stamp(last))
        await on.proxy.publish(between)
        writer.write(request())
        await asyncio.sleep(QUIET)
        assert on.kinds() == "qs"
        await on.proxy.publish(last)
        assert (await answer(reader))[0] == 403


async def test_no_connection_is_served_until_all_of_them_have_been_evaluated() -> None:
    """Also if the snapshot becomes required while connections are being evaluated."""

    class Other:
        """Another open connection."""

        def policy_changed(self) -> None:
            if not seen:
                on.ctx.policy_store.fence._words = (stamp(newer), stamp(newer))
                writer.write(request())
            seen.append(on.kinds())

        def drain(self) -> None: ...
        def end_idle(self) -> None: ...
        def cut(self, reason: str) -> None: ...

    seen: list[str] = []
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(request())
        assert (await answer(reader))[0] == 200
        newer = snapshot(gets("/other"))
        others = [Other() for _ in range(10 * NUDGED_AT_ONCE)]
        for one in others:
            on.ctx.policy_store.join(one)
        await on.proxy.publish(newer)
        for one in others:
            on.ctx.policy_store.leave(one)
        assert set(seen) == {"qs"}
        assert (await answer(reader))[0] == 403


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made = Ends()
    yield made
    made.theirs.close()
    made.poller.close()


def fenced(poller: Poller) -> None:
    poller.fence._words = (5, 5)


def unfenced(poller: Poller) -> None:
    poller.fence.applied = 5
    poller.go_on()


async def test_what_is_left_to_read_after_a_failed_write_waits_behind_the_fence(ends: Ends) -> None:
    ends.theirs.send(b"the answer")
    ends.they_reset()
    ends.stream.write(b"more of the question")
    ends.stream.write(b"and its end")  # the first one only finds the reset
    assert ends.stream.closing()
    fenced(ends.poller)
    await asyncio.sleep(QUIET)
    assert (ends.read, ends.party.told) == (b"", [])
    unfenced(ends.poller)
    assert isinstance(await ends.lost(), OSError)
    assert (ends.read, ends.party.told) == (b"the answer", ["lost"])


async def test_the_loss_of_a_connection_waits_behind_the_fence(ends: Ends) -> None:
    """What follows writes to the other connection: what a splice has left, an error response."""
    ends.they_reset()
    ends.stream.ready(IN)
    fenced(ends.poller)
    await asyncio.sleep(QUIET)
    assert ends.party.told == []
    unfenced(ends.poller)
    assert isinstance(await ends.lost(), ConnectionResetError)


async def test_a_connection_that_we_end_is_closed_in_spite_of_the_fence(ends: Ends) -> None:
    fenced(ends.poller)
    ends.stream.reset()
    assert await ends.lost() is None


async def test_a_failed_connect_waits_behind_the_fence() -> None:
    class Nowhere(Plain):
        def dial(self, client: HostPort, server: HostPort, attempt: int = 0) -> socket.socket:
            raise UpstreamError("there is no way")

    told: list[str] = []

    class Caller:
        def reached(self, sock: socket.socket) -> None: ...

        def unreachable(self, reason: str) -> None:
            told.append(reason)

    poller, nowhere = Poller(), HostPort("127.0.0.1", 0)
    UpstreamConnector(Caller(), poller, Nowhere(nowhere, nowhere), nowhere, nowhere)
    fenced(poller)
    await asyncio.sleep(QUIET)
    assert told == []
    unfenced(poller)
    await asyncio.sleep(0)
    assert told == ["there is no way"]
    poller.close()


async def test_timeouts_wait_behind_the_fence() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(b"GET")
        await on.until(lambda: on.ctx.memory.held)
        newer = snapshot(gets())
        on.ctx.policy_store.fence._words = (stamp(newer), stamp(newer))
        on.passes(on.ctx.timeouts.head + 1)
        on.passes(1)
        await asyncio.sleep(QUIET)
        assert on.kinds() == ""
        await on.proxy.publish(newer)
        on.passes(1)
        assert (await answer(reader))[0] == 408


async def test_after_a_stall_a_snapshot_that_is_there_is_read_first() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        newer = snapshot(gets("/other"))
        words = [0, 0]
        words[PUBLISHED] = stamp(newer)
        on.ctx.policy_store.fence._words = words
        assert not words[REQUIRED]
        on.ctx.poller._ended -= 1_000_000_000  # the last turn was long ago
        writer.write(request())
        await asyncio.sleep(QUIET)
        assert not on.records
        await on.proxy.publish(newer)
        assert (await answer(reader))[0] == 403


async def test_a_snapshot_that_never_comes_is_not_waited_for() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        on.ctx.policy_store.fence._words = (1 << 60, 0)
        on.ctx.poller.wait = 0.01
        on.ctx.poller._ended -= 1_000_000_000
        writer.write(request())
        assert (await answer(reader))[0] == 200


async def test_a_worker_that_was_stopped_goes_on_by_the_present_snapshot(tmp_path: Path) -> None:
    agent = Agent(tmp_path / "link.sock")
    async with (
        agent.server.serving(),
        backend(web) as server,
        worker(tmp_path / "link.sock", server) as (process, port),
    ):
        await agent.publish()
        agent.server.require()
        async with client(port) as talk:
            assert await get(*talk) == 200
            os.kill(process.pid, signal.SIGSTOP)
            await agent.server.publish(snapshot(gets("/other")))
            agent.server.require()
            talk[1].write(request())
            os.kill(process.pid, signal.SIGCONT)
            assert (await answer(talk[0]))[0] == 403
