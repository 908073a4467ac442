"""The agent's flow path with followers of Hubble's API, in its own process: prints its figures as one JSON object.

Workers' batches go through the recorder into the ring, and over a unix socket to followers (`bench.flow_follower`) in
processes of their own, whose CPU is not counted. No flow may be lost: ingestion waits for followers after each batch.

Run: .venv/bin/python -m bench.flow_paths [ROUNDS]
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from bench.cpu import rss_mib
from bench.micro_flows import ALLOWED, SECOND, sent
from l7proxy.agent.flow_recorder import Recorder
from l7proxy.agent.hubble import Hubble
from l7proxy.flows.batch import Flows
from l7proxy.flows.records import HttpRequest, HttpResponse, Record
from l7proxy.flows.ring import LARGEST_CAPACITY, Ring
from l7proxy.hubble.api.flow import flow_pb2
from l7proxy.hubble.api.observer import observer_pb2
from l7proxy.link import framing
from l7proxy.model.policy_verdict import Conn
from l7proxy.setting_definitions import Settings

PODS = 100
REQUESTS = 1000
FOLLOWERS = 20
LAST = 4095
SETTLE = 0.5
"""Seconds for the last follower's request to be taken."""


def records(round_: int) -> list[Record]:
    """Of each pod one in a hundred."""
    made: list[Record] = []
    for number in range(REQUESTS):
        conn = Conn(f"10.0.1.{number % PODS}", 40000 + number % 7, "10.0.0.2", 80, 1001 + number % PODS, 1002)
        url = f"http://backend.shop:8080/api/v1/users/{number * 7919}/items/{round_}"
        began = SECOND + (round_ * REQUESTS + number) * 31_337
        made.append(HttpRequest(began, conn, ALLOWED, "GET", url, "HTTP/1.1"))
        made.append(HttpResponse(began + 250_000, conn, ALLOWED, "GET", url, "HTTP/1.1", 200, 250_000))
    return made


class Agent:
    """The half of the agent that flows go through."""

    def __init__(self, directory: Path, capacity: int) -> None:
        self.ring = Ring(capacity, node_name="node-1")
        self.socket = directory / "hubble.sock"
        self.hubble = Hubble(Settings(node="node-1", hubble_socket_path=str(self.socket)), self.ring)
        self._recorder = Recorder(self.ring, node="node-1")

    def ingest(self, frames: list[bytes]) -> int:
        count, decoder = 0, framing.from_worker()
        for frame in frames:
            for message in decoder.feed(frame):
                assert isinstance(message, Flows)
                self._recorder.ingest(message)
                count += len(message.times)
        return count


@asynccontextmanager
async def follower(agent: Agent, asked: observer_pb2.GetFlowsRequest) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "bench.flow_follower", str(agent.socket), asked.SerializeToString().hex()]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdout is not None and process.stdin is not None
    if await process.stdout.readline() != b"ready\n":
        raise SystemExit("a follower could not connect")
    try:
        yield process
    finally:
        process.stdin.close()
        await process.wait()


async def received(process: asyncio.subprocess.Process) -> int:
    assert process.stdout is not None and process.stdin is not None
    process.stdin.write(b"\n")
    return int(await process.stdout.readline())


async def following(agent: Agent, rounds: list[list[bytes]], followers: int) -> float:
    """µs of CPU per flow, ingestion included. One follower asks for all; of several each asks for one pod's."""
    async with agent.hubble.serving(), _followers(agent, followers) as processes:
        count, before = 0, time.process_time_ns()
        for frames in rounds:
            count += agent.ingest(frames)
            share = count if followers == 1 else count // PODS // 2  # requests come from a pod, responses do not
            while processes and min([await received(one) for one in processes]) < share:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        spent = time.process_time_ns() - before
    if agent.ring.lost:
        raise SystemExit(f"{agent.ring.lost} flows were lost")
    return spent / count / 1000


@asynccontextmanager
async def _followers(agent: Agent, number: int) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    async with AsyncExitStack() as opened:
        found = []
        for place in range(number):
            asked = observer_pb2.GetFlowsRequest(follow=True)
            if number > 1:
                asked.whitelist.append(flow_pb2.FlowFilter(source_ip=[f"10.0.1.{place}"]))
            found.append(await opened.enter_async_context(follower(agent, asked)))
        await asyncio.sleep(SETTLE)
        yield found


async def last(agent: Agent, number: int) -> float:
    """Milliseconds from the connection to the end of the answer."""
    asked = observer_pb2.GetFlowsRequest(number=number).SerializeToString()
    code = (
        "import sys, time\nfrom bench.flow_follower import Follower\nbegan = time.monotonic()\n"
        "one = Follower(sys.argv[1], bytes.fromhex(sys.argv[2]))\nwhile not one.ended:\n    one.read()\n"
        "print((time.monotonic() - began) * 1000, one.messages)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(agent.socket), asked.hex(), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    milliseconds, messages = out.split()
    if int(messages) != number:
        raise SystemExit(f"{int(messages)} flows came, not {number}")
    return float(milliseconds)


async def figures(rounds: int) -> dict[str, Any]:
    frames = [sent(records(number)) for number in range(rounds)]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        found: dict[str, Any] = {}
        for key, followers in (("none", 0), ("one", 1), ("many", FOLLOWERS)):
            agent = Agent(directory, LAST)
            found[key] = await following(agent, frames, followers)
        async with agent.hubble.serving():
            found["last_ms"] = min([await last(agent, LAST) for _ in range(3)])
        del agent
        large = Agent(directory, LARGEST_CAPACITY)
        number = 0
        while len(large.ring) < LARGEST_CAPACITY:
            large.ingest(sent(records(number)))
            number += 1
        found["rss_mib"] = rss_mib(os.getpid())
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(figures(int(sys.argv[1]) if len(sys.argv) > 1 else 40))))
