"""The agent's socket: one JSON object per line in, one or many out. Mode 0600, root's and our own user's only.

Whatever comes in is answered or refused with `{"error": "…"}`; no input ends the agent, and no client can hold more
of it than one bounded line and one place in the ring.
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
"""Seconds that a client may stay without asking."""
GONE_CHECK: Final = 2.0
"""Seconds between looks whether an observer is still there."""

Answer = Callable[[Mapping[str, Any]], object]
"""One method: the question in, what `json` can write out (or an awaitable of it).

ConfigError is the client's fault, in words for its user.
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
        """ConfigError when another live agent has the path."""
        listener = local.listen(self._path)
        inode = self._path.stat().st_ino
        writers: set[asyncio.StreamWriter] = set()

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            try:
                await self._client(reader, writer)
            finally:
                writers.discard(writer)
                writer.close()

        server = await asyncio.start_unix_server(client, sock=listener, limit=MAX_LINE)
        try:
            yield
        finally:
            server.close()
            for writer in writers:
                writer.transport.abort()
            with suppress(FileNotFoundError):
                if self._path.stat().st_ino == inode:  # a successor may have put its own there
                    self._path.unlink()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client until it has no more questions. Its going away is no error."""
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
        """Flows, one per line. A slow reader is waited for here, and loses what the ring cannot keep so long."""
        items = observer.observe(self._ring, question)

        async def pump() -> None:
            async for item in items:
                writer.write(item.line())
                await writer.drain()

        async with asyncio.TaskGroup() as tasks:
            pumping = tasks.create_task(pump(), name="observe")
            while not pumping.done():
                await asyncio.wait((pumping,), timeout=GONE_CHECK)
                if _gone(writer):
                    pumping.cancel()
                    break


def _gone(writer: asyncio.StreamWriter) -> bool:
    """True when the other end is closed both ways. Reading cannot tell: clients close their sending half at once."""
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
