"""µs of the flow path per request (two records): the worker's cost to send them, and the agent's to log them.

The worker's half is the outbox and the frame; the agent's is decoding, names and JSON lines, with and without writing
them to a file, and with counting them for Prometheus. 16 connections take turns, paths vary, two rules name their
policies.

Run: .venv/bin/python -m bench.micro_flows [ROUNDS]
"""

from __future__ import annotations

import asyncio
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from l7proxy import compiled
from l7proxy.agent.flow_recorder import Recorder
from l7proxy.flows.batch import Flows
from l7proxy.flows.records import HttpRequest, HttpResponse, Record
from l7proxy.flows.ring import Reader, Ring
from l7proxy.flows.sinks.jsonl import JsonLinesFile
from l7proxy.flows.sinks.sink import Sink
from l7proxy.link import framing
from l7proxy.link.outbox import Outbox
from l7proxy.metrics.options import parse
from l7proxy.metrics.sink import FlowMetrics
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.setting_definitions import Settings

CONNECTIONS = 16
REQUESTS = 1024
RULE = RuleRef("CiliumNetworkPolicy", "default", "l7-policy", "spec.ingress[0].toPorts[0].rules.http[0]", "p.yaml", 7)
OTHER = RuleRef("CiliumNetworkPolicy", "default", "egress-policy", "spec.egress[1]", "p.yaml", 40)
ALLOWED = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS, ingress=RULE, egress=OTHER)
CONNS = [Conn("10.0.0.1", 40000 + number, "10.0.0.2", 80, 1001, 1002) for number in range(CONNECTIONS)]
SECOND = 1_763_928_000_000_000_000


def records() -> list[Record]:
    """As a gate makes them: the response shares the strings of its request."""
    made: list[Record] = []
    for number in range(REQUESTS):
        conn = CONNS[number % CONNECTIONS]
        url = f"http://backend.shop:8080/api/v1/users/{number * 7919}/items/{number}"
        began = SECOND + number * 31_337
        made.append(HttpRequest(began, conn, ALLOWED, "GET", url, "HTTP/1.1"))
        made.append(HttpResponse(began + 250_000, conn, ALLOWED, "GET", url, "HTTP/1.1", 200, 250_000))
    return made


def sent(result: list[Record]) -> list[bytes]:
    """The worker's half: records in, frames out."""
    outbox, frames = Outbox(), []
    for record in result:
        outbox.put(record)
    while (flows := outbox.take()) is not None:
        frames.append(framing.encode(flows))
    return frames


class Agent:
    """The agent's half: frames in, lines out."""

    def __init__(self, path: Path | None, metrics: str = "") -> None:
        self.ring = Ring(4095, node_name="node-1")
        self.recorder = Recorder(self.ring, node="node-1")
        self.reader = Reader(self.ring)
        self.sink: Sink | None = JsonLinesFile(path, max_bytes=1 << 40) if path else None
        if metrics:
            self.sink = FlowMetrics(parse(metrics), limit=10_000)

    def take(self, frames: list[bytes]) -> None:
        decoder = framing.from_worker()
        for frame in frames:
            for message in decoder.feed(frame):
                assert isinstance(message, Flows)
                self.recorder.ingest(message)
            if self.sink is not None:
                self.sink.consume(self.reader.batch(1024))


def measure(name: str, run: Callable[[], object], rounds: int) -> None:
    best = float("inf")
    for _ in range(rounds):
        before = time.process_time_ns()
        run()
        best = min(best, time.process_time_ns() - before)
    print(f"{name:44} {best / REQUESTS / 1000:7.2f} µs")


async def bench(rounds: int) -> None:
    print(f"Python {platform.python_version()}, {compiled.word()}, best of {rounds} rounds of {REQUESTS} requests")
    result = records()
    frames = sent(result)
    print(f"{'bytes on the link per request':44} {sum(map(len, frames)) / REQUESTS:7.0f}")
    measure("worker: outbox and frames", lambda: sent(result), rounds)
    without = Agent(None)
    measure("agent: into the ring", lambda: without.take(frames), rounds)
    counting = Agent(None, Settings(node="node-1").flow_metrics)
    measure("agent: into the ring, and counted", lambda: counting.take(frames), rounds)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "flows.jsonl"
        logging = Agent(path)

        def into_file() -> None:
            logging.take(frames)
            path.write_bytes(b"")  # truncated, so that it does not fill the disk

        measure("agent: into the ring and a file", into_file, rounds)


if __name__ == "__main__":
    asyncio.run(bench(int(sys.argv[1]) if len(sys.argv) > 1 else 60))
