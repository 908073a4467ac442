"""µs of a worker's own work per request, from a leg's data_received to the frames for the agent: no socket, no kernel.

Everything is the real thing (session, gate, policy, outbox, frames) but the two transports, which only count. Compare
with bench/micro_worker.py, which has uvloop and the kernel in it. What the parts cost is in the other lines.

Run: .venv/bin/python -m bench.micro_session [ROUNDS]
"""

from __future__ import annotations

import asyncio
import platform
import sys
import time
from collections.abc import Callable
from typing import Any, cast

from bench.micro_http1 import request, response
from bench.micro_worker import CLIENT, SERVER, picture
from l7proxy import compiled
from l7proxy.link import framing
from l7proxy.link.outbox import Outbox
from l7proxy.model.net import HostPort
from l7proxy.proxy.board import Board
from l7proxy.proxy.server.session import Session
from l7proxy.proxy.server.steering import Plain
from l7proxy.proxy.server.surroundings import Surroundings
from l7proxy.proxy.wheel import Wheel

REQUESTS = 2048
CONNECTIONS = 16


class Wire:
    """A transport that takes everything at once."""

    def __init__(self, peer: str, port: int) -> None:
        self.names = {"peername": (peer, port), "sockname": ("127.0.0.1", 15001), "socket": None}
        self.sent = 0

    def get_extra_info(self, name: str) -> Any:
        return self.names[name]

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        """Never full."""

    def write(self, data: bytes) -> None:
        self.sent += 1

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


async def opened(around: Surroundings, port: int, first: bytes) -> Session:
    """A session whose server is reached, without a socket: its connect is given up and its leg is handed a Wire."""
    session = Session(around)
    session.protocol.connection_made(cast(asyncio.Transport, Wire(CLIENT, port)))
    session._client.data_received(first)
    await asyncio.sleep(0)
    session._stop_connecting()
    session._server.connection_made(cast(asyncio.Transport, Wire(SERVER, 80)))
    return session


def measure(name: str, run: Callable[[], object], rounds: int) -> None:
    best = float("inf")
    for _ in range(rounds):
        before = time.process_time_ns()
        run()
        best = min(best, time.process_time_ns() - before)
    print(f"{name:44} {best / REQUESTS / 1000:7.2f} µs")


async def bench(rounds: int) -> None:
    print(f"Python {platform.python_version()}, {compiled.word()}, best of {rounds} rounds of {REQUESTS}")
    loop = asyncio.get_running_loop()
    outbox = Outbox()
    gets = [request(number) for number in range(REQUESTS)]
    answers = [response(number) for number in range(REQUESTS)]
    async with asyncio.TaskGroup() as tasks:
        around = Surroundings(
            board=Board(),
            steering=Plain(HostPort("127.0.0.1", 0), HostPort(SERVER, 80)),
            wheel=Wheel(loop.time()),
            records=outbox.put,
            tasks=tasks,
            now_ns=time.time_ns,
        )
        assert not await around.board.publish(picture())
        sessions = [await opened(around, 40000 + number, gets[0]) for number in range(CONNECTIONS)]
        for session in sessions:
            session._server.data_received(answers[0])
        legs = [(session._client, session._server) for session in sessions]
        work = [(*legs[number % CONNECTIONS], *pair) for number, pair in enumerate(zip(gets, answers, strict=True))]

        def exchanges() -> None:
            for client, server, asked, answer in work:
                client.data_received(asked)
                server.data_received(answer)
            while (flows := outbox.take()) is not None:
                framing.encode(flows)

        measure("session: GET and answer, records framed", exchanges, rounds)
        assert around.counts.errors == 0 and around.counts.denied == 0
        assert all(
            cast(Any, client.transport).sent > 1 and cast(Any, server.transport).sent > 1 for client, server in legs
        )


if __name__ == "__main__":
    sys.exit(asyncio.run(bench(int(sys.argv[1]) if len(sys.argv) > 1 else 40)))
