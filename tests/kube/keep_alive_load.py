"""HTTP/1.1 clients that keep their connection: `python3 keep_alive_load.py HOST PORT CLIENTS SECONDS [FILE]`.

They end after SECONDS, or when FILE exists. Runs in a pod with the standard library only. Prints one line of JSON:
requests, connections, and failures by kind. An answer other than 200 is a failure, and so is a connection that ends
before its answer. A connection that the server closes while it is idle is none: HTTP allows it at any time (RFC 9112,
9.3.1).
"""

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

PAUSE = 0.5
PATIENCE = 10.0
REQUEST = b"GET /api/x HTTP/1.1\r\nHost: web\r\n\r\n"


class Load:
    def __init__(self, host: str, port: int, clients: int, seconds: float, stop: Path | None = None) -> None:
        self.host, self.port, self.clients, self.stop = host, port, clients, stop
        self.end = time.monotonic() + seconds
        self.requests = self.connections = 0
        self.failures: Counter[str] = Counter()

    async def run(self) -> None:
        await asyncio.gather(*(self.client(number) for number in range(self.clients)))

    async def client(self, number: int) -> None:
        await asyncio.sleep(PAUSE * number / self.clients)
        streams = None
        while time.monotonic() < self.end and not (self.stop and self.stop.exists()):
            try:
                async with asyncio.timeout(PATIENCE):
                    if streams is None or streams[0].at_eof():
                        streams = await asyncio.open_connection(self.host, self.port)
                        self.connections += 1
                    await self.ask(*streams)
            except (OSError, EOFError, TimeoutError) as error:
                self.failures[type(error).__name__] += 1
                streams = None
            await asyncio.sleep(PAUSE)

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        self.requests += 1
        if lines[0].split()[1] != b"200":
            self.failures[lines[0].decode()] += 1


if __name__ == "__main__":
    load = Load(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), *map(Path, sys.argv[5:]))
    asyncio.run(load.run())
    print(json.dumps({"requests": load.requests, "connections": load.connections, "failures": load.failures}))
