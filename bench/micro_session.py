"""µs of a worker's own work per request, from SocketStream.data_received to the frames for the agent: no kernel.

Everything is real (session, gate, policy, outbox, frames) except for the two sockets, which only count. Compare with
bench/micro_worker.py, which includes uvloop and the kernel. The other lines show the cost of the parts.

Run: .venv/bin/python -m bench.micro_session [ROUNDS]
"""

from __future__ import annotations

import asyncio
import platform
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from bench.micro_http1 import request, response
from bench.micro_worker import CLIENT, SERVER, snapshot
from l7proxy import compiled
from l7proxy.gate.clock import Clock
from l7proxy.link import framing
from l7proxy.link.outbox import Outbox
from l7proxy.model.net import HostPort
from l7proxy.proxy.policy_store import PolicyStore
from l7proxy.proxy.server.context import WorkerContext
from l7proxy.proxy.server.session import Session
from l7proxy.proxy.server.steering import Plain
from l7proxy.proxy.server.timer_wheel import TimerWheel

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

REQUESTS = 2048
CONNECTIONS = 16


class Wire(socket.socket):
    """A socket that accepts all data at once, and is never readable or writable."""

    def __init__(self) -> None:
        mine, self.other = socket.socketpair()
        super().__init__(fileno=mine.detach())
        self.sent = 0

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        self.sent += 1
        return len(cast(bytes, data))

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 15001


def opened(ctx: WorkerContext, port: int, first: bytes) -> tuple[Session, Wire, Wire]:
    """A session with an upstream but no connection: its connect is cancelled and it gets a Wire instead."""
    session, client, server = Session(ctx, ctx.shares.of(CLIENT)), Wire(), Wire()
    session.accepted(client, HostPort(CLIENT, port))
    session._client.data_received(first)
    session._stop_connecting()
    session.reached(server)
    return session, client, server


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
    ctx = WorkerContext(
        policy_store=PolicyStore(),
        steering=Plain(HostPort("127.0.0.1", 0), HostPort(SERVER, 80)),
        timers=TimerWheel(loop.time()),
        records=outbox.put,
        clock=Clock(time.time_ns, time.monotonic_ns),
    )
    assert not await ctx.policy_store.publish(snapshot())
    opens = [opened(ctx, 40000 + number, gets[0]) for number in range(CONNECTIONS)]
    sessions = [session for session, _, _ in opens]
    for session in sessions:
        session._server.data_received(answers[0])
    streams = [(session._client, session._server) for session in sessions]
    work = [(*streams[number % CONNECTIONS], *pair) for number, pair in enumerate(zip(gets, answers, strict=True))]

    def exchanges() -> None:
        for client, server, asked, answer in work:
            client.data_received(asked)
            server.data_received(answer)
        while (flows := outbox.take()) is not None:
            framing.encode(flows)

    measure("session: GET and answer, records framed", exchanges, rounds)
    assert ctx.counts.errors == 0 and ctx.counts.denied == 0
    assert all(client.sent > 1 and server.sent > 1 for _, client, server in opens)


if __name__ == "__main__":
    sys.exit(asyncio.run(bench(int(sys.argv[1]) if len(sys.argv) > 1 else 40)))
