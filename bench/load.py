"""The load: N keep-alive connections, each sends its next request when the answer to the last is whole.

    python -m bench.load HOST PORT --connections 16 --seconds 5 [--rate 1000]

Paths, queries and header values vary from request to request, as real traffic does: a proxy that caches by the whole
head must not look faster than it is. Prints one JSON object: requests, errors, seconds, p50_us, p99_us.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from functools import partial
from typing import cast

import uvloop

VARIANTS = 4096


def requests(host: str, seed: int = 7) -> list[bytes]:
    """Heads of about 250 bytes that the demo policy allows (`GET /api/.*`)."""
    rng = random.Random(seed)
    agents = ["curl/8.9.1", "python-requests/2.32.3", "Go-http-client/1.1", "okhttp/4.12.0"]
    made = []
    for number in range(VARIANTS):
        path = f"/api/v{number % 3}/users/{rng.randrange(10**6)}/items/{rng.randrange(1000)}"
        made.append(
            f"GET {path}?page={rng.randrange(50)} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {rng.choice(agents)}\r\n"
            f"Accept: application/json\r\nX-Request-Id: {rng.getrandbits(128):032x}\r\n"
            f"X-Token: {rng.getrandbits(64):016x}\r\n\r\n".encode()
        )
    return made


class Client(asyncio.Protocol):
    """One connection of the load."""

    def __init__(self, run: Run, offset: int) -> None:
        self.run = run
        self.next = offset
        self.got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports are no subclass of asyncio's
        self.send()

    def send(self) -> None:
        if self.run.over:
            self.transport.close()
            return
        self.sent = time.perf_counter_ns()
        self.transport.write(self.run.heads[self.next % VARIANTS])
        self.next += 1

    def data_received(self, data: bytes) -> None:
        self.got += data
        if not self.got.endswith(b"Hello, world\n"):
            if b" 403 " in self.got[:16] or b" 50" in self.got[:12]:
                self.run.errors += 1
                self.transport.close()
            return
        self.got = b""
        self.run.latencies.append(time.perf_counter_ns() - self.sent)
        if self.run.interval:
            self.run.loop.call_later(self.run.interval, self.send)
        else:
            self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.run.over:
            self.run.errors += 1


class Run:
    """What the connections share."""

    def __init__(self, heads: list[bytes], interval: float) -> None:
        self.heads = heads
        self.interval = interval
        self.over = False
        self.errors = 0
        self.latencies: list[int] = []
        self.loop = asyncio.get_running_loop()


async def load(host: str, port: int, *, connections: int, seconds: float, rate: float) -> dict[str, float]:
    run = Run(requests(host), connections / rate if rate else 0.0)
    for number in range(connections):
        await run.loop.create_connection(partial(Client, run, number * 257), host, port)
    start = time.perf_counter()
    await asyncio.sleep(seconds)
    run.over = True
    elapsed = time.perf_counter() - start
    await asyncio.sleep(0.2)
    ordered = sorted(run.latencies) or [0]
    return {
        "requests": len(run.latencies),
        "errors": run.errors,
        "seconds": round(elapsed, 3),
        "p50_us": ordered[len(ordered) // 2] / 1000,
        "p99_us": ordered[len(ordered) * 99 // 100] / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second in all; 0 is as fast as it goes")
    args = parser.parse_args()
    print(
        json.dumps(
            uvloop.run(load(args.host, args.port, connections=args.connections, seconds=args.seconds, rate=args.rate))
        )
    )


if __name__ == "__main__":
    main()
