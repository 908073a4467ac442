"""Serves the agent's Unix socket: one JSON object per line in, one or more out. Mode 0600, only root and our own user.

Every request gets an answer or `{"error": "…"}`. No input stops the agent, and a client can use no more of its memory
than one bounded line and one read position in the ring.
"""

from __future__ import annotations

import asyncio
import json
import logging
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from l7proxy.errors import ConfigError, L7ProxyError
from l7proxy.flows import observer
from l7proxy.flows.ring import Ring
from l7proxy.link import local

log = logging.getLogger(__name__)

MAX_LINE: Final = 64 << 10
MAX_CLIENTS: Final = 64
IDLE: Final = 300.0
"""Seconds after which a client that sends no request is disconnected."""
GONE_CHECK: Final = 2.0
"""Seconds between checks whether an observer is still connected."""

Answer = Callable[[Mapping[str, Any]], object]
"""One API method: takes the request, returns a JSON-serialisable object (or an awaitable of one).

ConfigError is an error of the client, with a message for its user.
"""


class AgentApi:
    """`async with api.serving(): …`."""

    def __init__(self, path: Path, ring: Ring, answers: Mapping[str, Answer]) -> None:
        self._path = path
        self._ring = ring
        self._answers = answers
        self._clients = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """ConfigError when another running agent uses the path."""
        writers: set[asyncio.StreamWriter] = set()

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            try:
                await self._client(reader, writer)
            finally:
                writers.discard(writer)
                writer.close()

        with local.listening(self._path) as listener:
            server = await asyncio.start_unix_server(client, sock=listener, limit=MAX_LINE)
            try:
                yield
            finally:
                server.close()
                for writer in writers:
                    writer.transport.abort()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it sends no more requests. A disconnect is not an error."""
        if not local.is_ours(writer.transport):
            return
        if self._clients >= MAX_CLIENTS:
            await _say(writer, {"error": f"too many clients, the limit is {MAX_CLIENTS}: try again later"})
            return
        self._clients += 1
        with suppress(ConnectionError):
            try:
                await self._talk(reader, writer)
            except TimeoutError:
                pass
            finally:
                self._clients -= 1

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(IDLE):
                    line = await reader.readline()
            except ValueError:
                await _say(writer, {"error": f"the request line is longer than {MAX_LINE} bytes"})
                return
            if not line:
                return
            try:
                question = _question(line)
                if question.get("method") == "observe":
                    await self._observe(question, writer)
                else:
                    await _say(writer, await self._answer(question))
            except L7ProxyError as error:
                await _say(writer, {"error": str(error)})

    async def _answer(self, question: Mapping[str, Any]) -> object:
        method = question.get("method")
        answer = self._answers.get(method) if isinstance(method, str) else None
        if answer is None:
            known = ", ".join(sorted((*self._answers, "observe")))
            raise ConfigError(f"unknown method {method!r:.60}: must be one of {known}")
        said = answer(question)
        return await said if isinstance(said, Awaitable) else said

    async def _observe(self, question: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        """Send flows, one per line. Waits for a slow reader, which loses flows that the ring overwrites meanwhile."""
        events = observer.observe(self._ring, question)

        async def pump() -> None:
            async for event in events:
                writer.write(event.line())
                await writer.drain()

        async with asyncio.TaskGroup() as tasks:
            pumping = tasks.create_task(pump(), name="observe")
            while not pumping.done():
                await asyncio.wait((pumping,), timeout=GONE_CHECK)
                if _gone(writer):
                    pumping.cancel()
                    break


def _gone(writer: asyncio.StreamWriter) -> bool:
    """True when the client closed both directions. EOF does not show it: clients close their sending half at once."""
    if writer.transport.is_closing():
        return True
    poll = select.poll()
    poll.register(writer.get_extra_info("socket").fileno(), 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _question(line: bytes) -> Mapping[str, Any]:
    try:
        question = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the request is not valid JSON: {error}") from error
    if not isinstance(question, dict):
        raise ConfigError("the request must be a JSON object with a method")
    return question


async def _say(writer: asyncio.StreamWriter, answer: object) -> None:
    writer.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
    await writer.drain()
