"""CPU µs per request of a worker and of the agent's flow log, on loopback: no lab, no kernel rules, no privileges.

The worker is the real one (policy with HTTP rules, two records per request, the link), the agent is its flow recorder
with a JSON lines file; a minimal server answers, wrk sends on 16 keep-alive connections. Only CPU time of worker and
agent is counted, so other load matters little; compare only figures taken within a few minutes.

Run: .venv/bin/python -m bench.micro_worker [--seconds S] [--connections N] [--idle N]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import uvloop

from l7proxy import compiled
from l7proxy.agent.flow_recorder import Recorder
from l7proxy.flows.ring import Ring
from l7proxy.flows.sinks.feed import Feed
from l7proxy.flows.sinks.jsonl import JsonLinesFile
from l7proxy.link.messages import PolicySnapshot
from l7proxy.link.server import LinkServer
from l7proxy.model.net import HostPort
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action
from l7proxy.policy.rules import HeaderMatch, HttpRule, HttpRules
from l7proxy.policy.tables import EndpointPolicy, Entry, LocalEndpoint, union
from l7proxy.proxy.server.steering import Plain
from l7proxy.proxy.worker import run_worker
from l7proxy.setting_definitions import WorkerSettings

CLIENT, SERVER = "127.0.0.1", "127.0.0.3"
TICK: Final = os.sysconf("SC_CLK_TCK")
REF: Final = RuleRef(
    "CiliumNetworkPolicy", "default", "l7-policy", "spec.ingress[0].toPorts[0].rules.http[0]", "p.yaml", 7
)
RULES: Final = (
    HttpRule(REF, method="GET", path="/api/.*"),
    HttpRule(REF, method="POST", path="/api/data", headers=(HeaderMatch("x-token"),)),
)
BODY: Final = b'{"hello": "world"}\n'
ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sun, 23 Nov 2025 23:00:00 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
LUA: Final = """
local n = 0
function request()
  n = n + 1
  local path = "/api/v" .. (n % 3) .. "/users/" .. (n * 7919 % 1000000) .. "/items/" .. (n % 1000)
  path = path .. "?page=" .. (n % 50)
  return wrk.format("GET", path, {["Host"] = "backend.shop", ["User-Agent"] = "bench/" .. (n % 5),
    ["Accept"] = "application/json", ["Connection"] = @CONNECTION@,
    ["X-Request-Id"] = string.format("%032x", n * 2654435761),
    ["X-Token"] = string.format("%016x", n * 40503)})
end
"""


class Backend(asyncio.Protocol):
    """Answers each read: the load client does not pipeline."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transport is not a subclass

    def data_received(self, data: bytes) -> None:
        close = b"Connection: close" in data
        self.transport.write(ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1) if close else ANSWER)


def backend(sock: socket.socket) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Backend, sock=sock)
        await server.serve_forever()

    uvloop.run(serve())


def worker(link: Path, listen: int, server: int) -> None:
    run_worker(
        WorkerSettings(run_dir=link.parent), steering=Plain(HostPort("127.0.0.1", listen), HostPort(SERVER, server))
    )


def snapshot() -> PolicySnapshot:
    """The server is a local pod with HTTP rules."""
    policy = union((Entry(Action.REDIRECT, REF, None, 6, 0, 65535, l7=HttpRules(RULES)),), (REF,))
    return PolicySnapshot(
        revision=1,
        endpoints=(LocalEndpoint(2, "default/server", (SERVER,), EndpointPolicy(2, policy)),),
        identities={f"{CLIENT}/32": 300, f"{SERVER}/32": 301},
    )


def agent(link: Path, log: Path) -> None:
    async def serve() -> None:
        ring = Ring(4095, node_name="node-1")
        links = LinkServer(link, on_flows=Recorder(ring, node="node-1").ingest)
        async with links.serving():
            await links.publish(snapshot())
            await Feed("flow log", JsonLinesFile(log), ring).run()

    uvloop.run(serve())


def cpu(pid: int) -> tuple[int, int]:
    """User and system time, in clock ticks (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.sendall(b"GET /api/ HTTP/1.1\r\nHost: a\r\n\r\n")
            return b" 200 " in sock.recv(4096)
    except OSError:
        return False


def ask(port: int, script: Path, seconds: float, connections: int) -> int:
    """The number of answered requests."""
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(script), f"http://127.0.0.1:{port}"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(f"the load met errors: {said}")
    return int(next(line for line in said.splitlines() if " requests in " in line).split()[0])


@contextlib.contextmanager
def running(*, close: bool = False) -> Iterator[tuple[dict[str, int], int, Path]]:
    """The pids of backend, agent and worker, the worker's port, and a script for wrk."""
    context = multiprocessing.get_context("fork")
    upstream = socket.socket()
    upstream.bind((SERVER, 0))
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        link, script = Path(directory) / "link.sock", Path(directory) / "load.lua"
        script.write_text(LUA.replace("@CONNECTION@", '"close"' if close else "nil"))
        processes = {
            "backend": context.Process(target=backend, args=(upstream,)),
            "agent": context.Process(target=agent, args=(link, Path(directory) / "flows.jsonl")),
            "worker": context.Process(target=worker, args=(link, port, upstream.getsockname()[1])),
        }
        for process in processes.values():
            process.start()
        try:
            while not answers(port):
                time.sleep(0.1)
            yield {name: process.pid or 0 for name, process in processes.items()}, port, script
        finally:
            for process in reversed(processes.values()):
                process.terminate()
                process.join(10)


def load(seconds: float, connections: int, *, close: bool) -> None:
    with running(close=close) as (pids, port, script):
        ask(port, script, 1, connections)
        before = {name: cpu(pid) for name, pid in pids.items()}
        count = ask(port, script, seconds, connections)
        for name in ("worker", "agent"):
            user, system = (
                (after - first) / TICK * 1e6 / count for after, first in zip(cpu(pids[name]), before[name], strict=True)
            )
            print(f"{name:8} {user + system:6.2f} µs per request: user {user:6.2f}, system {system:6.2f}")
        print(f"{count / seconds:.0f} requests/s")


def rss(pid: int) -> float:
    """MiB (proc(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def idle(connections: int) -> None:
    """Memory of the worker: after some load, and with this number of connections that sent one request and now idle."""
    with running() as (pids, port, script), contextlib.ExitStack() as held:
        ask(port, script, 1, 16)
        before = rss(pids["worker"])
        for number in range(connections):
            sock = held.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            sock.sendall(b"GET /api/%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
            assert b" 200 " in sock.recv(4096)
        after = rss(pids["worker"])
        each = (after - before) * 1024 / connections
        print(f"worker RSS {before:.1f} MiB, with {connections} idle connections {after:.1f}: {each:.1f} KiB each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--close", action="store_true", help="a new connection for every request")
    parser.add_argument("--idle", type=int, default=0, help="instead: memory with so many idle connections")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("needs wrk")
    print(f"the worker's hot modules: {compiled.word()}")
    if args.idle:
        idle(args.idle)
    else:
        load(args.seconds, args.connections, close=args.close)


if __name__ == "__main__":
    main()
