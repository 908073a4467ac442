"""A worker's end of the link. It reconnects for ever; without an agent the worker keeps serving with the last policy.

Policy snapshots go to `on_snapshot`, one at a time; Applied is sent when it returns. Records come from the outbox: when
the agent does not read, the outbox fills up and counts the records it drops; sessions never wait. `request` waits for
the agent's answer; without a connection it is refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from l7proxy.errors import LinkError, RequestRefusedError
from l7proxy.flows.batch import Flows
from l7proxy.flows.pack import pack
from l7proxy.link import framing
from l7proxy.link.delta import SnapshotDecoder
from l7proxy.link.messages import (
    MAX_WORKER_FRAME,
    PROTOCOL_VERSION,
    Acknowledged,
    Applied,
    FromWorker,
    Hello,
    PolicySnapshot,
    Refused,
    Request,
    RequestBody,
    WorkerStats,
)
from l7proxy.link.outbox import Outbox
from l7proxy.link.requests import PendingRequests

log = logging.getLogger(__name__)

READ_SIZE: Final = 1 << 18
FIRST_RETRY: Final = 0.05
LAST_RETRY: Final = 2.0
STATS_SECONDS: Final = 1.0
FRAMES: Final = 8
"""Most batches in one write."""

SnapshotHandler = Callable[[PolicySnapshot], Awaitable[tuple[str, ...]]]
"""Makes a policy snapshot active and returns the problems found in it."""


class LinkClient:
    """Run `await client.run()` in a task; cancel the task to stop."""

    def __init__(
        self, path: Path, worker: int, *, outbox: Outbox, on_snapshot: SnapshotHandler, stats: Callable[[], WorkerStats]
    ) -> None:
        self._path = path
        self._worker = worker
        self._outbox = outbox
        self._on_snapshot = on_snapshot
        self._stats = stats
        self._requests = PendingRequests()
        self._writer: asyncio.StreamWriter | None = None

    @property
    def connected(self) -> bool:
        return self._writer is not None

    async def run(self) -> None:
        """Connect, serve the connection until it breaks, connect again."""
        retry = FIRST_RETRY
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(os.fspath(self._path))
            except OSError as error:
                log.debug("link: cannot connect to the agent at %s: %s", self._path, error)
                await asyncio.sleep(retry)
                retry = min(retry * 2, LAST_RETRY)
                continue
            log.info("link: connected to the agent")
            began = asyncio.get_running_loop().time()
            await self._converse(reader, writer)
            if asyncio.get_running_loop().time() - began > LAST_RETRY:
                retry = FIRST_RETRY
            await asyncio.sleep(retry)
            retry = min(retry * 2, LAST_RETRY)

    async def request(self, body: RequestBody, timeout: float) -> None:  # noqa: ASYNC109 -- the contract's form
        """Return when the agent has done it, and this worker has applied each snapshot published before the answer.

        RequestRefusedError in every other case: without a connection, without an answer within `timeout` seconds.
        """
        writer = self._writer
        if writer is None:
            raise RequestRefusedError("no connection to the agent")

        def send(request: Request) -> None:
            writer.write(framing.encode(request))  # requests are few and small: no need to drain

        await self._requests.ask(send, body, timeout)

    async def flush(self, seconds: float) -> bool:
        """For the end of the process: true when every record has been sent within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._outbox.settled()
        except TimeoutError:
            return False
        return True

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end. Nothing that the agent does makes it raise."""
        self._writer = writer
        writer.transport.set_write_buffer_limits(0)  # so that drain() waits until the kernel has the bytes
        try:
            writer.write(framing.encode(Hello(version=PROTOCOL_VERSION, pid=os.getpid(), worker=self._worker)))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(reader, writer), name="link-read")
                tasks.create_task(self._send_records(writer), name="link-records")
                tasks.create_task(self._send_stats(writer), name="link-stats")
        except* LinkError as errors:
            log.error("link: closed the connection to the agent: %s", errors.exceptions[0])
        except* OSError as errors:
            log.warning("link: lost the connection to the agent (%s); keeping the last policy", errors.exceptions[0])
        finally:
            self._writer = None
            writer.transport.abort()
            self._requests.refuse_all("the connection to the agent was lost before its answer")

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder, snapshots = framing.from_agent(), SnapshotDecoder()
        while data := await reader.read(READ_SIZE):
            for message in decoder.feed(data):
                if isinstance(message, Acknowledged | Refused):
                    self._requests.answered(message)
                    continue
                snapshot = snapshots.open(message)
                problems = await self._on_snapshot(snapshot)
                await self._send(writer, Applied(revision=snapshot.revision, problems=problems))
        decoder.eof()
        raise ConnectionResetError("it closed the connection")

    async def _send_records(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._outbox.filled()
            await self._send_some(writer)

    async def _send_some(self, writer: asyncio.StreamWriter) -> None:
        """Send up to FRAMES batches. Sessions run after each small batch, so none waits longer than encoding one takes.
        All frames go in one write, so that the agent wakes up once."""
        taken: list[Flows] = []
        frames: list[bytes] = []
        try:
            while len(taken) < FRAMES and (flows := self._outbox.take()) is not None:
                taken.append(flows)
                frames += _frames(flows)
                await asyncio.sleep(0)
            if writer.is_closing():
                raise ConnectionResetError("it closed the connection")
            writer.write(b"".join(frames))
            taken.clear()
        finally:
            for flows in reversed(taken):
                self._outbox.put_back(flows)
        await writer.drain()
        self._outbox.sent()

    async def _send_stats(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._send(writer, self._stats())
            await asyncio.sleep(STATS_SECONDS)

    async def _send(self, writer: asyncio.StreamWriter, message: FromWorker) -> None:
        writer.write(framing.encode(message))
        await writer.drain()


def _frames(flows: Flows) -> list[bytes]:
    """The batch as one frame; if that is too long, split in halves."""
    try:
        return [framing.encode(flows, max_frame=MAX_WORKER_FRAME)]
    except LinkError:
        records = flows.records()
        half = len(records) // 2
        if not half:
            raise
        return [*_frames(pack(records[:half], flows.lost)), *_frames(pack(records[half:]))]
