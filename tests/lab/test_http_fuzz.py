"""Mutated messages through the real worker to two independent servers: each sees what was evaluated, and no more.

The mutants are those of the differential test between our two readers; here nginx and llhttp are the other readers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from l7proxy.flows.records import HttpRequest, HttpResponse, Record
from l7proxy.model.policy_verdict import Conn
from l7proxy.model.verdict import Verdict
from tests.lab.test_http_backends import Stage, stage
from tests.lab.test_worker_packets import Net, net  # noqa: F401 -- a fixture
from tests.unit.wire import mutants

pytestmark = pytest.mark.lab

MUTANTS: Final = int(os.environ.get("L7PROXY_MUTANTS", "1200"))
AT_ONCE: Final = 150
SILENCE: Final = 1.0
"""Seconds of silence after which a connection counts as waiting for more input."""


async def say(on: Stage, data: bytes) -> None:
    with contextlib.closing(await on.front.dial()) as sock, contextlib.suppress(OSError, TimeoutError):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, data)
        while True:
            async with asyncio.timeout(SILENCE):
                if not await loop.sock_recv(sock, 65536):
                    return


def answered(records: list[Record], *statuses: int) -> Counter[tuple[str, str]]:
    """(method, path) of the requests that were allowed and reached one of these servers."""
    asked: dict[Conn, HttpRequest] = {}
    found = []
    for record in records:
        if isinstance(record, HttpRequest):
            asked[record.conn] = record
        elif isinstance(record, HttpResponse) and record.status in statuses:
            request = asked[record.conn]
            assert request.policy_verdict.verdict is Verdict.FORWARDED
            rest = request.url.removeprefix("http://")
            found.append((request.method, rest[rest.index("/") :] if "/" in rest else "*"))
    return Counter(found)


@pytest.mark.parametrize("which", ["nginx", "aiohttp"])
async def test_corpus_of_smuggling_mutants_are_seen_as_they_were_judged(
    net: Net,  # noqa: F811
    tmp_path: Path,
    which: str,
) -> None:
    pick = mutants.dice(int.from_bytes(which.encode()))
    said = [mutants.request(pick) + b"GET /behind?%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(MUTANTS)]
    async with stage(net, which, tmp_path) as on:
        for begin in range(0, len(said), AT_ONCE):
            await asyncio.gather(*[say(on, data) for data in said[begin : begin + AT_ONCE]])
        await asyncio.sleep(1)
        records = list(on.front.records)
        # A client that times out is a 499; or, when its server closes on its FIN (as aiohttp does), a 502.
        wanted, left = answered(records, 200), answered(records, 499, 502)
        seen = Counter((each.method, each.target) for each in await on.witness.seen(wanted.total()))
    assert wanted <= seen <= wanted + left
    assert left.total() < wanted.total() // 10
    assert wanted.total() > MUTANTS // 3, "hardly any passed: this would prove nothing"
    assert len(records) - 2 * wanted.total() > MUTANTS // 10, "hardly any was refused: this would prove nothing"
