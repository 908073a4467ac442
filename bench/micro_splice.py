"""CPU of a worker per GB of bodies, with and without splice, alternating: loopback, one connection, real sessions.

Run: .venv/bin/python -m bench.micro_splice [MB PER BODY] [ROUNDS]
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator

import uvloop

from bench.bulk_server import send
from bench.cpu import Used, used
from bench.micro_worker import CLIENT, REF, SERVER
from l7proxy.gate.clock import Clock
from l7proxy.link.messages import PolicySnapshot
from l7proxy.model.net import HostPort
from l7proxy.model.verdict import Action
from l7proxy.policy.rules import HttpRule, HttpRules
from l7proxy.policy.tables import EndpointPolicy, Entry, LocalEndpoint, union
from l7proxy.proxy.policy_store import PolicyStore
from l7proxy.proxy.server.context import WorkerContext
from l7proxy.proxy.server.pipes import RUNS, Pipes
from l7proxy.proxy.server.server import ProxyServer
from l7proxy.proxy.server.steering import Plain
from l7proxy.proxy.server.timer_wheel import TimerWheel

BULK = 18980
WAYS = {"spliced": RUNS, "ordinary": 0}
ENOUGH = 1 << 30
"""Bytes of one measurement."""


RULES = union((Entry(Action.REDIRECT, REF, protocol=6, l7=HttpRules((HttpRule(REF, path="/bulk/.*"),))),), (REF,))
SNAPSHOT = PolicySnapshot(
    revision=1,
    endpoints=(LocalEndpoint(1, "default/server", (SERVER,), EndpointPolicy(1, ingress=RULES)),),
    identities={f"{CLIENT}/32": 300, f"{SERVER}/32": 301},
)


async def proxy(limit: int) -> None:
    """Serve forever; prints the port on stdout."""
    ctx = WorkerContext(
        policy_store=PolicyStore(),
        steering=Plain(HostPort("127.0.0.1", 0), HostPort(SERVER, BULK)),
        timers=TimerWheel(0.0),
        records=lambda record: None,
        clock=Clock(lambda: 0, lambda: 0),
    )
    ctx.pipes = Pipes(limit)
    server = ProxyServer(ctx, ctx.steering.listen())
    await server.publish(SNAPSHOT)
    print(server.addresses[0].port, flush=True)
    await server.tick()


@contextlib.contextmanager
def child(*argv: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-m", *argv], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def transfer(port: int, size: int, *, up: bool) -> None:
    """Transfers ENOUGH bytes in bodies of `size` bytes, one after the other on one connection."""
    into = memoryview(bytearray(1 << 20))
    with socket.create_connection(("127.0.0.1", port), source_address=(CLIENT, 0)) as sock:
        for _ in range(max(1, ENOUGH // size)):
            if up:
                sock.sendall(b"POST /bulk/up HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % size)
                send(sock, size)
            else:
                sock.sendall(b"GET /bulk/%d HTTP/1.1\r\nhost: h\r\n\r\n" % size)
            left = 0 if up else size
            head = b""
            while b"\r\n\r\n" not in head:
                head += sock.recv(65536)
            assert head.startswith(b"HTTP/1.1 200 "), head[:100]
            left -= len(head.partition(b"\r\n\r\n")[2])
            while left > 0:
                left -= sock.recv_into(into, min(left, len(into)))


def main() -> None:
    megabytes, rounds = (int(arg) for arg in (sys.argv[1:] + ["100", "3"][len(sys.argv) - 1 :]))
    size = megabytes << 20
    print(f"Python {platform.python_version()}, bodies of {megabytes} MB, best of {rounds} rounds")
    with contextlib.ExitStack() as stack:
        stack.enter_context(child("bench.bulk_server", str(BULK)))
        proxies = {}
        for way, limit in WAYS.items():
            process = stack.enter_context(child("bench.micro_splice", "serve", str(limit)))
            assert process.stdout is not None
            proxies[way] = (process.pid, int(process.stdout.readline()))
        for direction in ("download", "upload"):
            best: dict[str, Used] = {}
            for _ in range(rounds):
                for way, (pid, port) in proxies.items():
                    before = used(pid)
                    transfer(port, size, up=direction == "upload")
                    spent = used(pid) - before
                    best[way] = min(spent, best.get(way, spent), key=lambda one: one.total)
            per_gb = {way: spent.total * ENOUGH / (max(1, ENOUGH // size) * size) for way, spent in best.items()}
            for way, seconds in per_gb.items():
                share = f"user {best[way].user:.2f}, system {best[way].system:.2f}"
                print(f"{direction:9} {way:9} {seconds:6.3f} s/GB ({share})")
            print(f"{direction:9} ratio     {per_gb['spliced'] / per_gb['ordinary']:6.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(proxy(int(sys.argv[2])))
    else:
        main()
