"""The agent's end of the link: a unix socket for workers, mode 0600, for our user and root only.

Every worker gets the newest policy snapshot after Hello and whenever there is a newer one: as a delta if it was sent
the previous one, else in full. A slow worker skips those in between. An invalid frame from a worker ends its
connection, never the agent. Requests are handled beside each other, and an answer never overtakes a snapshot that was
published before it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, assert_never, cast

import msgspec

from l7proxy.errors import LinkError
from l7proxy.flows.batch import Flows
from l7proxy.link import fence, framing, local
from l7proxy.link.delta import EMPTY, delta
from l7proxy.link.messages import (
    CONNECTION,
    MAX_WORKER_FRAME,
    PROTOCOL_VERSION,
    Acknowledged,
    Applied,
    FromWorker,
    Hello,
    PolicySnapshot,
    Refused,
    Request,
    WorkerStats,
)
from l7proxy.link.requests import RequestHandler, RequestRunner, no_handler

log = logging.getLogger(__name__)

HELLO_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 1.0
"""Time for a refused peer to read why."""
END_SECONDS: Final = 1.0
"""Time for workers to close the link when the agent ends."""
FIRST_SECONDS: Final = 3.0
"""Time for workers of an earlier agent to connect, before the first snapshot is required of them."""

FlowsHandler = Callable[[Flows], None]
"""Called with each batch. LinkError when the batch is invalid."""


class WorkerState(msgspec.Struct, frozen=True):
    """The last reported state of a connected worker. `revision` 0: nothing applied yet."""

    pid: int
    worker: int
    revision: int = 0
    problems: tuple[str, ...] = ()
    stats: WorkerStats = WorkerStats()


class LinkServer:
    """`async with server.serving(): …`. Only the newest published snapshot counts. At the end, what workers have sent
    is read before the link is closed."""

    def __init__(self, path: Path, *, on_flows: FlowsHandler, on_request: RequestHandler = no_handler) -> None:
        self._path = path
        self._on_flows = on_flows
        self.on_request = on_request
        self._connected: set[_Peer] = set()
        self._alone = asyncio.Event()
        """Set when a peer has left and none is connected."""
        self._snapshot: PolicySnapshot | None = None
        self._page: fence.Page | None = None
        self._first = True
        self._frames: dict[int, bytes] = {}  # to the newest snapshot, by the revision that the worker has
        self._waiting: dict[asyncio.Future[None], int] = {}

    def workers(self) -> list[WorkerState]:
        """Connected workers after Hello, by index, then pid (during an upgrade two workers have the same index)."""
        states = [peer.state for peer in self._connected if peer.state is not None]
        return sorted(states, key=lambda state: (state.worker, state.pid))

    async def publish(self, snapshot: PolicySnapshot) -> None:
        """Send the snapshot to all current and future workers. Returns before they apply it: see `wait_applied`."""
        before = self._snapshot
        if self._page is not None:
            snapshot = msgspec.structs.replace(snapshot, epoch=self._page.epoch)
            self._page.publish(snapshot)
        frames = {before.revision: await asyncio.to_thread(_frame, before, snapshot)} if before is not None else {}
        self._snapshot, self._frames = snapshot, frames
        for peer in list(self._connected):
            self.bring_up(peer)

    def bring_up(self, peer: _Peer) -> None:
        """Send a writable worker what it lacks: first the newest snapshot, then the answers to its requests."""
        if peer.state is None or not peer.writable:
            return
        self._send_snapshot(peer)
        if peer.answers:
            peer.transport.write(b"".join(peer.answers))
            peer.answers.clear()

    def _send_snapshot(self, peer: _Peer) -> None:
        """As a delta if possible."""
        snapshot = self._snapshot
        if snapshot is None or peer.sent == snapshot.revision:
            return
        base = peer.sent if peer.sent in self._frames else EMPTY.revision
        if base not in self._frames:
            self._frames[base] = _frame(EMPTY, snapshot)
        peer.sent = snapshot.revision
        peer.transport.write(self._frames[base])

    async def wait_applied(self, revision: int, timeout: float) -> bool:  # noqa: ASYNC109 -- the contract's form
        """True when every connected worker enforces `revision` or newer; False after `timeout` seconds."""
        done = asyncio.get_running_loop().create_future()
        self._waiting[done] = revision
        self._wake()
        try:
            async with asyncio.timeout(timeout):
                await done
        except TimeoutError:
            return False
        finally:
            del self._waiting[done]
        return True

    def require(self) -> None:
        """From now on a worker that has not applied the newest snapshot serves no connection (see `fence`)."""
        page, snapshot = self._page, self._snapshot
        if page is None or snapshot is None:
            return
        if self._first:
            self._first = False
            asyncio.get_running_loop().call_later(FIRST_SECONDS, page.require, snapshot)
        else:
            page.require(snapshot)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Accept workers. ConfigError when another live agent uses the path."""
        with local.listening(self._path) as listener:
            self._page = fence.Page(fence.beside(self._path))
            server = await asyncio.get_running_loop().create_unix_server(lambda: _Peer(self), sock=listener)
            try:
                yield
            finally:
                server.close()
                await self._end()

    async def _end(self) -> None:
        """Say that nothing more comes, so that workers close; those that do not are cut off."""
        self._alone.clear()
        for peer in self._connected:
            with suppress(OSError, RuntimeError):  # it is closed already
                peer.transport.write_eof()
        try:
            async with asyncio.timeout(END_SECONDS):
                if self._connected:
                    await self._alone.wait()
        except TimeoutError:
            log.warning("link: %d workers have not closed it within %g s", len(self._connected), END_SECONDS)
        finally:
            for peer in list(self._connected):
                peer.transport.abort()

    def joined(self, peer: _Peer) -> None:
        self._connected.add(peer)

    def left(self, peer: _Peer) -> None:
        self._connected.discard(peer)
        if not self._connected:
            self._alone.set()
        self._wake()

    def heard(self, peer: _Peer, message: FromWorker) -> None:
        """Process a worker's message. LinkError when it is not allowed at this point."""
        state = peer.state
        if state is None:
            peer.state = _greeted(message)
            self.bring_up(peer)
            return
        match message:
            case Flows():
                self._on_flows(message)
            case WorkerStats():
                peer.state = msgspec.structs.replace(state, stats=message)
            case Request():
                peer.requests.begin(message, unsent=len(peer.answers))
            case Applied(revision, problems):
                peer.state = msgspec.structs.replace(state, revision=revision, problems=problems)
                self._wake()
            case Hello():
                raise LinkError("a second Hello")
            case _:
                assert_never(message)

    def _wake(self) -> None:
        """Resolve the waits whose revision all connected workers have applied."""
        lowest = min((state.revision for state in self.workers()), default=None)
        for done, revision in self._waiting.items():
            if not done.done() and (lowest is None or lowest >= revision):
                done.set_result(None)


def _greeted(message: FromWorker) -> WorkerState:
    if not isinstance(message, Hello):
        raise LinkError(f"{type(message).__name__} before Hello")
    if message.version != PROTOCOL_VERSION:
        raise LinkError(
            f"it uses link protocol version {message.version}, the agent uses {PROTOCOL_VERSION}: restart it"
        )
    return WorkerState(message.pid, message.worker)


def _frame(before: PolicySnapshot, after: PolicySnapshot) -> bytes:
    return framing.encode(delta(before, after))


class _Peer(asyncio.Protocol):
    """A connection to the socket. `sent` is the revision of the last snapshot written to it; `answers` are unsent."""

    transport: asyncio.Transport  # set by connection_made

    def __init__(self, server: LinkServer) -> None:
        self.requests = RequestRunner(server.on_request, self.answer)
        self.answers: list[bytes] = []
        self.state: WorkerState | None = None
        self._server = server
        self._decoder = framing.from_worker(max_frame=MAX_WORKER_FRAME)
        self.writable = True
        self.sent = 0
        self._patience: asyncio.TimerHandle | None = None

    def __str__(self) -> str:
        return f"worker {self.state.worker} (pid {self.state.pid})" if self.state else "a peer without Hello"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transport is not a subclass
        if not local.is_ours(transport):
            log.error("link: refused a peer that is neither root nor the agent's user")
            self.transport.abort()
            return
        self._server.joined(self)
        self._patience = asyncio.get_running_loop().call_later(HELLO_SECONDS, self._no_hello)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._server.heard(self, message)
        except LinkError as error:
            self._refuse(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self.requests.cancel()
        self._server.left(self)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        """The worker reads again: send it the newest snapshot, if it is behind."""
        self.writable = True
        self._server.bring_up(self)

    def _no_hello(self) -> None:
        if self.state is None:
            self._refuse(f"no Hello within {HELLO_SECONDS:g} s")

    def answer(self, message: Acknowledged | Refused) -> None:
        self.answers.append(framing.encode(message))
        self._server.bring_up(self)

    def _refuse(self, reason: str) -> None:
        """Say why, then close the connection, also when the peer does not read."""
        log.error("link: closed the connection to %s: %s", self, reason)
        self.transport.write(framing.encode(Refused(CONNECTION, reason)))
        self.transport.close()
        asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.transport.abort)
