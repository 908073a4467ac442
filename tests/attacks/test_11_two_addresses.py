"""Finding 11: a pod with two addresses has one share, not two, of the connections that a worker can carry."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from l7proxy.flows.records import Connection
from tests.unit.proxy.stage import CLIENT, answer, backend, gets, request, snapshot, stage, web

OTHER, NEIGHBOUR = "127.0.0.8", "127.0.0.9"
LIMIT = 8


async def test_both_addresses_of_a_pod_have_half_of_the_connections_together() -> None:
    made = snapshot(gets())
    pod = msgspec.structs.replace(made.endpoints[0], addresses=(CLIENT, OTHER))
    made = msgspec.structs.replace(made, endpoints=(pod, *made.endpoints[1:]))
    async with backend(web) as server, stage(server, made, limit=LIMIT) as on:
        for source in (CLIENT, OTHER) * (LIMIT // 2):
            with suppress(ConnectionResetError):  # of those over the share
                await on.client(source)
        await on.until(lambda: len(on.records) >= LIMIT // 2)
        assert len(on.records) == LIMIT // 2
        for record in on.records:
            assert isinstance(record, Connection)
            assert "half of the 8 connections" in record.policy_verdict.reason
        reader, writer = await on.client(NEIGHBOUR)
        writer.write(request())
        assert (await answer(reader))[0] == 200
