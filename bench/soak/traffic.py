"""Runs all kinds of traffic at once for some time, inside the client pod:

    python -m bench.soak.traffic HOST BURST SECONDS DIRECTORY

Writes a file for each kind to DIRECTORY, one byte per request (`ledger`), and prints one JSON object: the first
examples of wrong results, and the number of broken connections.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio
import uvloop

from bench.soak import talk
from bench.soak.ledger import GIVEN_UP
from bench.soak.talk import Book

Kind = Callable[[Book], Awaitable[None]]
MIX: tuple[tuple[Kind, int, float], ...] = (
    (talk.keep, 6, 0.0),
    (talk.pipe, 2, 0.01),
    (talk.deny, 1, 0.01),
    (talk.flip, 2, 0.01),
    (talk.down, 2, 0.01),
    (talk.up, 2, 0.01),
    (talk.chunked, 1, 0.05),
    (talk.ws, 2, 0.05),
    (talk.slow, 8, 0.0),
    (talk.http2, 2, 0.02),
    (talk.abort, 3, 0.01),
    (talk.malformed, 1, 0.01),
)
"""Kind, concurrent connections, and the pause after each."""
GRPC_CALLERS = 2


class Traffic:
    """One burst."""

    def __init__(self, book: Book, seconds: float) -> None:
        self.book = book
        self.end = time.monotonic() + seconds
        self.broken: list[str] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for kind, count, pause in MIX:
                for number in range(count):
                    tasks.create_task(self._again(kind, pause), name=f"{getattr(kind, '__name__', kind)} {number}")
            tasks.create_task(self._grpc(), name="grpc")

    async def _again(self, kind: Kind, pause: float) -> None:
        while time.monotonic() < self.end:
            try:
                await kind(self.book)
            except (OSError, TimeoutError, asyncio.IncompleteReadError, RuntimeError) as error:  # uvloop: when closed
                if kind is not talk.abort:  # it closes its own connections
                    self.broken.append(f"{getattr(kind, '__name__', kind)}: {error!r:.100}")
            await asyncio.sleep(pause)

    async def _grpc(self) -> None:
        """Unary calls with real gRPC, on new connections again and again."""
        while time.monotonic() < self.end:
            target = f"{self.book.host}:{talk.GRPC}"
            options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(target, options=options) as channel, asyncio.TaskGroup() as tasks:
                for number in range(GRPC_CALLERS):
                    tasks.create_task(self._calls(channel), name=f"caller {number}")

    async def _calls(self, channel: grpc.aio.Channel) -> None:
        book = self.book
        for _ in range(book.rng.randrange(1, 100)):
            if time.monotonic() > self.end:
                return
            number = book.new("grpc")
            payload = bytes(book.rng.randrange(2000))
            try:
                back = await channel.unary_unary(f"/soak.grpc/{book.burst}-{number}")(payload, timeout=talk.PATIENCE)
            except grpc.aio.AioRpcError as error:
                book.wrong("grpc", number, f"{error.code().name}: {error.details()}")
                continue
            if back == payload:
                book.answered("grpc", number)
            else:
                book.wrong("grpc", number, "another message came back")


def main() -> None:
    host, burst, seconds, directory = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
    book = Book(burst, host, seed=burst)
    traffic = Traffic(book, seconds)
    uvloop.run(traffic.run())
    for kind, result in book.outcomes.items():
        (directory / kind).write_bytes(result)
    given_up = {kind: result.count(GIVEN_UP) for kind, result in book.outcomes.items()}
    print(json.dumps({"examples": book.examples, "broken": traffic.broken, "given_up": given_up}))


if __name__ == "__main__":
    main()
