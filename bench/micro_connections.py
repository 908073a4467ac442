"""CPU µs of a worker per request with its own connection: connect, GET, answer, close. No agent, no
kernel rules.

The worker's serving half runs in this process on uvloop; its upstream connections are bound and marked as with TPROXY.
Client and server are separate processes. `valgrind --tool=callgrind` counts this one alone: the difference between
two numbers of rounds gives the instructions per connection. Needs root.

Run: .venv/bin/python -m bench.micro_connections [ROUNDS]
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import resource
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

import uvloop

from bench.micro_http1 import request
from bench.micro_worker import ANSWER, SERVER, snapshot
from l7proxy import compiled
from l7proxy.gate.clock import Clock
from l7proxy.link import framing
from l7proxy.link.outbox import Outbox
from l7proxy.model.net import HostPort
from l7proxy.proxy.policy_store import PolicyStore
from l7proxy.proxy.server import listener
from l7proxy.proxy.server.context import WorkerContext
from l7proxy.proxy.server.server import ProxyServer
from l7proxy.proxy.server.steering import Transparent
from l7proxy.proxy.server.timer_wheel import TimerWheel
from l7proxy.proxy.worker import GC_THRESHOLDS

CONNECTIONS: Final = 512
AT_ONCE: Final = 16
CLIENT: Final = "127.0.0.2"
CLOSING: Final = ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)


class Steered(Transparent):
    """As with TPROXY, but the destination of every connection is `server`."""

    def __init__(self, server: HostPort) -> None:
        super().__init__(0, mark_upstream=0x2000000)
        self._server = server

    def listen(self) -> Sequence[socket.socket]:
        return [listener.bound("127.0.0.1", 0)]

    def destination(self, sockname: HostPort) -> HostPort:
        return self._server


def serve(sock: socket.socket) -> None:
    """Answers the first read and closes."""
    while True:
        taken, _ = sock.accept()
        with taken:
            if taken.recv(65536):
                taken.sendall(CLOSING)


def ask(address: tuple[str, int], rounds: int) -> None:
    gets = [request(number).replace(b"\r\n", b"\r\nConnection: close\r\n", 1) for number in range(CONNECTIONS)]
    for _ in range(rounds):
        for first in range(0, CONNECTIONS, AT_ONCE):
            socks = [socket.create_connection(address, source_address=(CLIENT, 0)) for _ in range(AT_ONCE)]
            for sock, get in zip(socks, gets[first:], strict=False):
                sock.sendall(get)
            for sock in socks:
                answer = b"".join(iter(lambda sock=sock: sock.recv(65536), b""))  # type: ignore[misc]
                assert answer.startswith(b"HTTP/1.1 200 "), answer
                sock.close()


async def bench(rounds: int) -> None:
    context = multiprocessing.get_context("spawn")  # a forked process would also run under valgrind
    outbox = Outbox()
    with socket.create_server((SERVER, 0), backlog=4096) as upstream:
        server = context.Process(target=serve, args=(upstream,), daemon=True)
        server.start()
        ctx = WorkerContext(
            policy_store=PolicyStore(),
            steering=Steered(HostPort(*upstream.getsockname())),
            timers=TimerWheel(asyncio.get_running_loop().time()),
            records=outbox.put,
            clock=Clock(time.time_ns, time.monotonic_ns),
        )
        proxy = ProxyServer(ctx, ctx.steering.listen())
        assert not await proxy.publish(snapshot())
        client = context.Process(target=ask, args=((proxy.addresses[0].address, proxy.addresses[0].port), rounds))
        client.start()
        gc.set_threshold(*GC_THRESHOLDS)
        gc.freeze()
        before = resource.getrusage(resource.RUSAGE_SELF)
        while client.is_alive():
            await asyncio.sleep(0.2)
            while (flows := outbox.take()) is not None:
                framing.encode(flows)
        after = resource.getrusage(resource.RUSAGE_SELF)
        await proxy.drain(1)
        server.terminate()
    assert client.exitcode == 0 and ctx.counts.requests == rounds * CONNECTIONS
    assert ctx.counts.errors == ctx.counts.denied == 0
    user, system = (
        (end - begin) * 1e6 / ctx.counts.requests
        for begin, end in ((before.ru_utime, after.ru_utime), (before.ru_stime, after.ru_stime))
    )
    print(f"{compiled.word()}, {ctx.counts.requests} connections: user {user:.1f} µs, system {system:.1f} µs each")


if __name__ == "__main__":
    uvloop.run(bench(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
