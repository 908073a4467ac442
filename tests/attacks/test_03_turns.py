"""Finding 3: clients take turns, so no client waits for all sockets of another.

Not timed: turns run in one call. The test counts the hostile client's requests served before the innocent one's.
"""

from __future__ import annotations

import asyncio

from l7proxy.flows.records import HttpRequest
from tests.unit.proxy.stage import CLIENT, Stage, backend, gets, request, snapshot, stage, web

HOSTILE = 64
"""Hostile connections, each with a request whenever the innocent client has one."""
BEFORE = 8
"""Hostile requests that may be served before the innocent one."""
INNOCENT = "127.0.0.9"


async def test_a_client_waits_for_a_few_requests_of_another_however_many_are_there() -> None:
    async with backend(web) as server, stage(server, snapshot(gets("/allowed"))) as on:
        on.ctx.poller.turn = 0
        hostile = [await on.dial() for _ in range(HOSTILE)]
        reader, writer = await on.client(INNOCENT)
        for _ in range(5):
            on.records.clear()
            for sock in hostile:
                sock.send(request(path="/denied"))
            writer.write(request(path="/allowed"))
            await reader.readuntil(b"\r\n\r\n")
            await on.until(lambda: len(requests(on)) == HOSTILE + 1)
            for sock in hostile:
                sock.recv(4096)
            await asyncio.sleep(0)
        sources = [record.conn.source for record in requests(on)]
        assert sources.count(CLIENT) == HOSTILE
        assert sources.index(INNOCENT) <= BEFORE
        for sock in hostile:
            sock.close()


def requests(on: Stage) -> list[HttpRequest]:
    return [record for record in on.records if isinstance(record, HttpRequest)]
