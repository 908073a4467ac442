"""Requests of a worker to the agent: who waits for an answer, and what the agent works on.

Undecided means closed: a request that gets no answer is refused. No socket here; the server and the client send what
these classes make. Both ends have the same bound, MAX_REQUESTS; ids are never used twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import count

import msgspec

from l7proxy.errors import LinkError, RequestRefusedError
from l7proxy.link.messages import CONNECTION, MAX_REQUESTS, Acknowledged, Refused, Request, RequestBody

log = logging.getLogger(__name__)

RequestHandler = Callable[[RequestBody], Awaitable[None]]
"""Does what a worker asks; returns when it is in force. RequestRefusedError refuses with a reason. It is
cancelled when the worker leaves."""


async def no_handler(body: RequestBody) -> None:
    """The handler of an agent that does nothing for its workers."""
    raise RequestRefusedError(f"the agent has no handler for {type(body).__name__}")


class PendingRequests:
    """A worker's requests without an answer."""

    def __init__(self) -> None:
        self._ids = count(CONNECTION + 1)
        self._waiting: dict[int, asyncio.Future[Acknowledged | Refused]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, send: Callable[[Request], None], body: RequestBody, timeout: float) -> None:  # noqa: ASYNC109 -- the contract's form
        """Return when the agent has acknowledged the request; RequestRefusedError in every other case."""
        if len(self._waiting) >= MAX_REQUESTS:
            raise RequestRefusedError(f"{MAX_REQUESTS} requests have no answer yet, no more are sent")
        request = Request(next(self._ids), body)
        answered = self._waiting[request.id] = asyncio.get_running_loop().create_future()
        try:
            send(_valid(request))
            async with asyncio.timeout(timeout):
                answer = await answered
        except TimeoutError as error:
            raise RequestRefusedError(f"no answer from the agent within {timeout:g} s") from error
        finally:
            del self._waiting[request.id]
        if isinstance(answer, Refused):
            raise RequestRefusedError(answer.reason)

    def answered(self, answer: Acknowledged | Refused) -> None:
        """The agent's answer. One that comes too late is ignored. LinkError when it refuses the connection."""
        if answer.id == CONNECTION and isinstance(answer, Refused):
            raise LinkError(f"refused by the agent: {answer.reason}")
        waiting = self._waiting.get(answer.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def refuse_all(self, reason: str) -> None:
        """The connection has ended: there will be no answers."""
        for number in self._waiting:
            self.answered(Refused(number, reason))


class RequestRunner:
    """The requests of one worker that the agent works on. `send` is called with each answer."""

    def __init__(self, handler: RequestHandler, send: Callable[[Acknowledged | Refused], None]) -> None:
        self._handler = handler
        self._send = send
        self._running: dict[int, asyncio.Task[None]] = {}

    def begin(self, request: Request, *, unsent: int) -> None:
        """Start the handler, or refuse. LinkError when the id is in use.

        `unsent` answers wait until the worker reads: they count against the bound, and more refusals are not added to
        them. The worker's timeout refuses those requests.
        """
        if request.id in self._running:
            raise LinkError(f"request {request.id} came twice")
        if len(self._running) + unsent >= MAX_REQUESTS:
            if not unsent:
                self._send(Refused(request.id, f"the agent works on {MAX_REQUESTS} requests of this worker already"))
            return
        task = asyncio.get_running_loop().create_task(self._run(request), name=f"link-request-{request.id}")
        self._running[request.id] = task

    def cancel(self) -> None:
        """The worker has left."""
        for task in self._running.values():
            task.cancel()

    async def _run(self, request: Request) -> None:
        answer = await self._answer(request)
        del self._running[request.id]
        self._send(answer)

    async def _answer(self, request: Request) -> Acknowledged | Refused:
        try:
            await self._handler(request.body)
        except RequestRefusedError as error:
            return Refused(request.id, str(error))
        except Exception as error:
            log.error("link: %s failed: %r", type(request.body).__name__, error, exc_info=error)
            return Refused(request.id, f"internal error of the agent: {error}")
        return Acknowledged(request.id)


def _valid(request: Request) -> Request:
    """RequestRefusedError when the agent would not accept it: an invalid frame ends the whole connection."""
    try:
        return msgspec.convert(msgspec.to_builtins(request), Request)
    except msgspec.ValidationError as error:
        raise RequestRefusedError(f"an invalid {type(request.body).__name__}: {error}") from error
