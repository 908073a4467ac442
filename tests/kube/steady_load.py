"""Requests without an end, in a pod: `python3 steady_load.py client|stranger ADDRESS PORT FILE`.

A client asks what it may (GET /api/x) over connections that it keeps, and meanwhile what it may not, over new and over
old connections. A stranger may ask nothing, and tries from its first moment on. FILE holds the counts so far, as JSON;
it is replaced as a whole, so that it can be read while nothing else of the cluster works. Standard library only.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

PAUSE = 0.1
PATIENCE = 10.0
CLIENTS = 10
ALLOWED = ("GET", "/api/x")
FORBIDDEN = (("GET", "/admin"), ("POST", "/api/x"), ("GET", "/API/x"))
STRANGE = ("GET", "/api/stranger")


class Load:
    def __init__(self, address: str, port: int, path: Path) -> None:
        self.address, self.port, self.path = address, port, path
        self.counts: Counter[str] = Counter()

    async def run(self, role: str) -> None:
        tasks = [self.write()]
        if role == "stranger":
            tasks.append(self.ask_for_ever("forbidden", cycle([STRANGE]), keep=False))
        else:
            tasks += [self.ask_for_ever("allowed", cycle([ALLOWED]), keep=True) for _ in range(CLIENTS)]
            tasks.append(self.ask_for_ever("forbidden", cycle(FORBIDDEN), keep=False))
            tasks.append(self.ask_for_ever("mixed", cycle([ALLOWED, *FORBIDDEN]), keep=True))
        await asyncio.gather(*tasks)

    async def write(self) -> None:
        fresh = self.path.with_suffix(".new")
        while True:
            fresh.write_text(json.dumps(self.counts))
            fresh.replace(self.path)
            await asyncio.sleep(0.2)

    async def ask_for_ever(self, what: str, requests: Iterable[tuple[str, str]], *, keep: bool) -> None:
        """Counts "WHAT: ANSWER", of the forbidden ones among the mixed as of forbidden ones."""
        streams = None
        for method, path in requests:
            kind = what if what != "mixed" else "allowed" if (method, path) == ALLOWED else "forbidden"
            if streams is not None and streams[0].at_eof():  # closed while it was idle, as HTTP allows
                streams[1].close()
                streams = None
            try:
                async with asyncio.timeout(PATIENCE):
                    if streams is None:
                        streams = await asyncio.open_connection(self.address, self.port)
                    answer = await self.ask(*streams, method, path)
            except (OSError, EOFError, TimeoutError) as error:
                answer = type(error).__name__
            self.counts[f"{kind}: {answer}"] += 1
            if streams is not None and (not keep or not answer.isdigit()):
                streams[1].close()
                streams = None
            await asyncio.sleep(PAUSE)

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str) -> str:
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(line.partition(b":")[2]) for line in head if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        return head[0].split()[1].decode()


if __name__ == "__main__":
    asyncio.run(Load(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])).run(sys.argv[1]))
