"""One client connection, from accept to its last record: source, destination, L4 verdict, gate, server.

The session owns both sockets and executes the gate's actions; it knows nothing of HTTP. An error in it ends only this
session: closed, with a record. Callbacks only: a session has no task.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, assert_never

from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Record
from l7proxy.gate.actions import (
    Action,
    Close,
    Connect,
    Emit,
    Gate,
    HalfClose,
    Pause,
    Phase,
    Resume,
    Side,
    Splice,
    SwitchGate,
    ToClient,
    ToServer,
)
from l7proxy.gate.detect import gate_for
from l7proxy.model.net import HostPort, canonical
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Verdict
from l7proxy.policy.combine import revoked
from l7proxy.policy.endpoints import ConnectionPolicy
from l7proxy.policy.l7 import Kind
from l7proxy.proxy.policy_store import PolicyIndex, choose, refusal
from l7proxy.proxy.server import splice
from l7proxy.proxy.server.context import WorkerContext
from l7proxy.proxy.server.shares import Share
from l7proxy.proxy.server.socket_stream import ReadPause, SocketStream
from l7proxy.proxy.server.splice import SpliceTransfer
from l7proxy.proxy.server.timer_wheel import Timer
from l7proxy.proxy.server.upstream import UpstreamConnector

log = logging.getLogger(__name__)

HELD_FOR_SERVER: Final = 64 << 10
"""Bytes kept while the upstream connection is being established; above this the client is not read."""
UNCOUNTED: Final = -1
"""`_kept` of a new gate: differs from what any gate holds, so that the current read counts it."""
UNSPECIFIED: Final = HostPort("::", 0)
RESET_BY_SERVER: Final = "the server reset the connection"
DROPPED: Final = Verdict.DROPPED
FENCED: Final = ConnectionPolicy(0, 0, None, None, refusal("this worker does not have the current policy yet"))
TOO_GREEDY: Final = "this connection buffers the most of its client, which is over its share of the worker's memory"
TOO_LATE: Final = "policy now has {} rules for this port, and this connection was opened without them"


class State(IntEnum):
    NEW = 0  # accepted; its policy is not known yet
    SERVING = 1  # it has a gate, but no server
    CONNECTING = 2  # the upstream connection is being established
    CONNECTED = 3
    ENDING = 4  # only sending is left: see `Session._end`
    CLOSED = 5  # nothing refers to it any more


class Event(IntEnum):
    SERVE = 0
    CONNECT = 1
    REACHED = 2
    UNREACHABLE = 3
    END = 4
    CLOSE = 5


# Final, so that compiled code needs no look-ups.
NEW: Final = State.NEW
SERVING: Final = State.SERVING
CONNECTING: Final = State.CONNECTING
CONNECTED: Final = State.CONNECTED
ENDING: Final = State.ENDING
CLOSED: Final = State.CLOSED

NEXT: Final[dict[State, dict[Event, State]]] = {
    NEW: {Event.SERVE: SERVING, Event.END: ENDING},
    SERVING: {Event.CONNECT: CONNECTING, Event.END: ENDING},
    CONNECTING: {Event.REACHED: CONNECTED, Event.UNREACHABLE: SERVING, Event.END: ENDING},
    CONNECTED: {Event.END: ENDING},
    ENDING: {Event.END: ENDING, Event.CLOSE: CLOSED},
    CLOSED: {Event.END: CLOSED},
}
"""What is not listed cannot happen: it raises KeyError, which ends the session."""

# The phases that the session knows; all others have the timeout `stream`.
IDLE: Final = Phase.IDLE
HEAD: Final = Phase.HEAD
TUNNEL: Final = Phase.TUNNEL


class Session:
    """Both socket streams, the gate between them, and the current timeout."""

    def __init__(self, ctx: WorkerContext, share: Share) -> None:
        """`share` is that of the client."""
        self._ctx = ctx
        self._share = share
        self._client = SocketStream(self, self._from_client)
        self._server = SocketStream(self, self._from_server)
        self._client.share = self._server.share = share
        self._gate: Gate | None = None
        self._index: PolicyIndex | None = None
        self._ends: ConnectionPolicy | None = None
        self._source = self._destination = UNSPECIFIED
        self._by_service = False
        self._kind: Kind | None = None
        self._connecting: UpstreamConnector | None = None
        self.held = 0
        """Bytes, as `memory` counts them."""
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._kept = 0
        """What of `held` the gate holds."""
        self._finish_server = False
        self._state = NEW
        self._requests = 0
        self._in_head = -1
        """`_requests` when the timeout of a head began; -1 outside of heads."""
        self._unsent = 0
        self._transfers: list[SpliceTransfer] = []
        self._timer = Timer(self._expired)

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet, in both directions."""
        return self._client.unsent + self._server.unsent + sum(map(len, self._held))

    # ---- events from the socket streams ----

    def _from_client(self, data: bytes) -> None:
        gate = self._gate
        if gate is None:
            return  # lingering: further bytes are discarded
        try:
            self._do(gate.from_client(data))
            if self._client.full:
                self._read_no_more()
            if self._share.full or gate.held != self._kept:
                self._account()
        except Exception as error:  # noqa: BLE001 -- as in _guarded, without its cost per read
            self._broke(error)

    def _from_server(self, data: bytes) -> None:
        gate = self._gate
        if gate is None:
            return
        try:
            self._do(gate.from_server(data))
            if self._share.full or gate.held != self._kept:
                self._account()
        except Exception as error:  # noqa: BLE001 -- likewise
            self._broke(error)

    def finished(self, stream: SocketStream) -> None:
        gate = self._gate
        if gate is None:
            stream.close()
        else:
            self._guarded(lambda: self._do(gate.client_eof() if stream is self._client else gate.server_eof()))

    def lost(self, stream: SocketStream, error: Exception | None) -> None:
        for run in self._stop_runs():
            self.spliced(run)
        gate = self._gate
        if gate is not None:
            if stream is self._client:
                self._guarded(lambda: self._gone(gate.client_lost()))
            else:
                self._client.release(ReadPause.FULL)  # nothing more is sent to the server
                self._guarded(
                    lambda: self._do(gate.server_eof() if error is None else gate.upstream_failed(RESET_BY_SERVER))
                )
        self._leave_if_done()

    def congested(self, stream: SocketStream, *, full: bool) -> None:
        other = self._server if stream is self._client else self._client
        if full:
            other.hold(ReadPause.FULL)
            if stream is self._client:
                self._read_no_more()
            elif self._gate is not None and self._gate.must_read(Side.SERVER):
                stream.hold(ReadPause.UNREAD)
        else:
            other.release(ReadPause.FULL)
            stream.release(ReadPause.UNREAD)

    def _read_no_more(self) -> None:
        """Stop reading a client that does not read, where its protocol allows that: else it could make us produce and
        buffer responses without limit."""
        if self._gate is not None and self._gate.must_read(Side.CLIENT):
            self._client.hold(ReadPause.UNREAD)

    # ---- buffered bytes ----

    def holding(self) -> None:
        self._guarded(self._account)

    def _account(self) -> None:
        """The bytes held by this connection have changed, or its share is above the limit."""
        share, memory, gate = self._share, self._ctx.memory, self._gate
        self._kept = gate.held if gate is not None else 0
        before, self.held = self.held, self._kept + self._client.held + self._server.held + self._held_bytes
        if before != self.held:
            memory.change(share, self, before)
        if share.full and gate is not None and memory.must_stop(share, self):
            self._client.hold(ReadPause.MEMORY)
            self._server.hold(ReadPause.MEMORY)
            share.stopped[self] = None
        elif self in share.stopped:
            del share.stopped[self]
            self._read_on()

    def read_on(self) -> None:
        self._guarded(self._read_on)

    def _read_on(self) -> None:
        self._client.release(ReadPause.MEMORY)
        self._server.release(ReadPause.MEMORY)

    def too_greedy(self) -> None:
        self.cut(TOO_GREEDY)

    # ---- calls from the worker ----

    def accepted(self, sock: socket.socket, source: HostPort) -> None:
        """Take over the client's connection: from here on the session closes it."""
        self._guarded(lambda: self._begin(sock, source))

    def policy_changed(self) -> None:
        """Evaluate the open connection under the newly active policy snapshot."""
        if self._gate is not None:
            self._guarded(self._rejudge)

    def drain(self) -> None:
        """The worker is stopping: the gate tells the client, if its protocol can, and ends after that."""
        if self._gate is None:
            return
        actions = self._gate.draining()
        if actions:
            self._guarded(lambda: self._do(actions))

    def end_idle(self) -> None:
        """End now if no exchange is in progress. A client that has not sent a request yet may still send one."""
        if self._gate is not None and self._requests and self._gate.waiting_for is IDLE:
            self._guarded(self._end)

    def cut(self, reason: str) -> None:
        """End now: `reason` is recorded."""
        if self._gate is None:
            self._reset()
        else:
            self._guarded(lambda: self._cut_off(refusal(reason, verdict=Verdict.ERROR)))

    def _expired(self) -> None:
        self._guarded(self._linger if self._state is ENDING else self._timed_out)

    # ---- start ----

    def _begin(self, sock: socket.socket, source: HostPort) -> None:
        ctx = self._ctx
        ctx.policy_store.join(self)  # before the first lookup, so that no new policy snapshot is missed
        self._share.sessions += 1
        self._client.open(sock, ctx.poller)
        self._source, self._destination = source, ctx.steering.destination(named(sock.getsockname()))
        why = self._impossible() or self._resolve()
        if why:
            self._refuse(refusal(why))
            return
        ends = self._look()
        if ends.refused:
            self._refuse(ends.l4)
            return
        self._serve(ends)

    def _serve(self, ends: ConnectionPolicy) -> None:
        index = self._policy_index()
        if self._by_service and ends.governed:
            self._tell(ends.l4)  # the kernel redirected by Service address and cannot record it
        self._kind = ends.kind
        if self._kind is not None:
            self._client.pace, self._server.pace = self._share.requests, self._share.responses
        conn = ends.conn(self._source, self._destination)
        self._gate = gate_for(self._kind, self._judge, conn, self._ctx.clock, index.options, ends.l4.direction)
        self._move(Event.SERVE)
        self._do(self._gate.started())
        if self._ctx.draining:  # accepted before the listeners were closed
            self.drain()

    def _impossible(self) -> str:
        """Why this connection cannot be served under any policy; empty when it can."""
        ctx, here = self._ctx, self._destination
        own_port = any(here.port == own.port for own in ctx.own)
        if here in ctx.own or (own_port and here.address in self._policy_index().node_addresses):
            return "the destination is the proxy itself"
        if len(ctx.policy_store) > ctx.limit:
            return f"this worker has reached its limit of {ctx.limit} connections"
        if self._share.full:
            ctx.memory.refused += 1
            return f"this client's connections buffer more than their share of {ctx.memory.budget >> 20} MiB"
        return ""

    def _resolve(self) -> str:
        """Replace a Service address by one of its backends. Returns why that fails; empty when it does not."""
        service = self._policy_index().frontend(self._destination)
        if service is None:
            return ""
        backend = choose(service)
        if backend is None:
            return f"Service {service.namespace}/{service.service} has no backends"
        self._destination, self._by_service = HostPort(backend.address, backend.port), True
        return ""

    def _refuse(self, policy_verdict: PolicyVerdict) -> None:
        self._ctx.counts.denied += 1
        self._tell(policy_verdict)
        self._reset()

    # ---- policy ----

    def _policy_index(self) -> PolicyIndex:
        index = self._ctx.policy_store.index
        if index is None:
            raise RuntimeError("a connection arrived before the first policy")
        return index

    def _look(self) -> ConnectionPolicy:
        """The connection's policy in the active index; looked up again only when the index has changed."""
        index = self._policy_index()
        if self._ctx.policy_store.fence.outdates(index.stamp):  # the process was stopped during this turn
            return FENCED
        if self._ends is None or index is not self._index:
            self._index = index
            self._ends = index.lookup(self._source.address, self._destination.address, self._destination.port)
            if self._gate is not None:
                self._gate.identified(self._ends.conn(self._source, self._destination))
        return self._ends

    def _judge(self, asked: object) -> PolicyVerdict:
        """Called by the gate for each request, when it begins to process it."""
        ends = self._look()
        return ends.judge(asked) if ends is not FENCED else FENCED.l4

    def _rejudge(self) -> None:
        ends = self._look()
        if ends is FENCED:
            return  # a newer policy snapshot is required: nothing is served until that one is here
        kind = ends.kind
        if ends.refused:
            self._ctx.counts.denied += 1
            self._cut_off(revoked(ends.l4))
        elif kind is not None and kind is not self._kind:
            self._cut_off(refusal(TOO_LATE.format(kind.name), direction=ends.l4.direction))
        elif self._gate is not None:
            self._do(self._gate.policy_changed())

    def _tell(self, policy_verdict: PolicyVerdict) -> None:
        """Emit a record of the connection itself."""
        ctx, ends = self._ctx, self._ends
        if ends is None:
            record_refusal(ctx, self._source, self._destination, policy_verdict)
        else:
            ctx.records(Connection(ctx.clock.now_ns(), ends.conn(self._source, self._destination), policy_verdict))

    # ---- actions ----

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, ToClient):
                if not self._client.closing():
                    self._client.write(action.data)
            elif isinstance(action, ToServer):
                self._to_server(action.data)
            elif isinstance(action, Emit):
                self._emit(action.record)
            elif isinstance(action, Connect):
                self._connect()
            elif isinstance(action, Pause):
                self._stream(action.side).hold(ReadPause.GATE)
            elif isinstance(action, Resume):
                self._stream(action.side).release(ReadPause.GATE)
            elif isinstance(action, HalfClose):
                self._half_close(action.side)
            elif isinstance(action, Close):
                if action.revoked:
                    self._server.reset()
                self._end(reset=action.reset)
            elif isinstance(action, Splice):
                self._splice(action)
            elif isinstance(action, SwitchGate):
                self._gate, self._kept = action.gate, UNCOUNTED
            else:
                assert_never(action)
        if self._gate is not None:
            self._watch()

    def _stream(self, side: Side) -> SocketStream:
        return self._client if side is Side.CLIENT else self._server

    def _to_server(self, data: bytes) -> None:
        server = self._server
        if server.made:
            if not server.closing():
                server.write(data)
            return
        self._held.append(data)
        self._held_bytes += len(data)
        self._account()
        if self._held_bytes > HELD_FOR_SERVER:
            self._client.hold(ReadPause.CONNECTING)

    def _half_close(self, side: Side) -> None:
        if side is Side.SERVER and not self._server.made:
            self._finish_server = True  # once it is connected
        else:
            self._stream(side).finish()

    def _splice(self, offered: Splice) -> None:
        """Accept the offer if possible; else the bytes come to the gate as usual."""
        if self._state is not CONNECTED:
            return  # bytes held for the server go first
        source, ctx = self._stream(offered.source), self._ctx
        target = self._server if source is self._client else self._client
        run = splice.start(self, source, target, offered.length, pipes=ctx.pipes, timers=ctx.timers)
        if run is not None:
            self._transfers.append(run)

    def moved(self) -> None:
        self._guarded(self._watch)

    def spliced(self, run: SpliceTransfer) -> None:
        """The transfer has ended or was stopped."""
        if run in self._transfers:
            self._transfers.remove(run)
        gate = self._gate
        if gate is not None:
            side = Side.CLIENT if run.source is self._client else Side.SERVER
            self._guarded(lambda: self._do(gate.spliced(side, run.moved)))

    def broken(self, stream: SocketStream, error: OSError) -> None:
        self.lost(stream, error)
        stream.reset()

    def _stop_runs(self) -> list[SpliceTransfer]:
        """Call it before the sockets are closed: the kernel may reuse a descriptor's number."""
        runs, self._transfers = self._transfers, []
        for run in runs:
            run.stop()
        return runs

    def _emit(self, record: Record) -> None:
        counts = self._ctx.counts
        if type(record) is HttpRequest:  # isinstance is slow when it is false
            self._requests += 1
            counts.requests += 1
            if record.policy_verdict.verdict is DROPPED:
                counts.denied += 1
        elif type(record) is not HttpResponse:
            counts.denied += 1
        self._ctx.records(record)

    def _watch(self) -> None:
        """Arm the timeout that applies now. Further bytes extend an idle timeout, but not that of a head."""
        gate, ctx = self._gate, self._ctx
        if self._state is CONNECTING or gate is None:
            return
        phase = gate.waiting_for
        if phase is HEAD:
            if self._in_head != self._requests:
                self._in_head = self._requests
                ctx.timers.arm(self._timer, ctx.timeouts.head)
            return
        self._in_head = -1
        if phase is IDLE:
            ctx.timers.arm(self._timer, ctx.timeouts.idle)
            if ctx.draining and self._requests:
                self.drain()
                if ctx.idle_ends:
                    self.end_idle()
            return
        if phase is TUNNEL:
            self._client.pace = self._server.pace = None
        ctx.timers.arm(self._timer, ctx.timeouts.stream)

    def _timed_out(self) -> None:
        if self._state is CONNECTING:
            self._stop_connecting()
            self._failed(
                f"cannot reach {self._destination}: connection timed out after {self._ctx.timeouts.connect:g} s"
            )
        elif self._gate is not None:
            self._do(self._gate.timed_out(self._gate.waiting_for))

    # ---- the server ----

    def _connect(self) -> None:
        if self._state is not SERVING:
            return
        ctx = self._ctx
        self._move(Event.CONNECT)
        self._connecting = UpstreamConnector(
            self, ctx.poller, ctx.steering, self._source, self._destination, self._share
        )
        ctx.timers.arm(self._timer, ctx.timeouts.connect)

    def _drop_held(self) -> None:
        """Forget the bytes held for the server."""
        self._held.clear()
        self._held_bytes = 0
        self._account()

    def _stop_connecting(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None

    def reached(self, sock: socket.socket) -> None:
        self._guarded(lambda: self._connected(sock))

    def unreachable(self, reason: str) -> None:
        self._guarded(lambda: self._failed(reason))

    def _connected(self, sock: socket.socket) -> None:
        gate, server = self._gate, self._server
        self._connecting = None
        server.open(sock, self._ctx.poller)  # first: if anything fails, the stream closes it
        self._move(Event.REACHED)
        assert gate is not None
        for data in self._held:
            server.write(data)
        self._drop_held()
        self._client.release(ReadPause.CONNECTING)
        if self._finish_server:
            server.finish()
        self._do(gate.connected())

    def _failed(self, reason: str) -> None:
        gate = self._gate
        assert gate is not None
        self._connecting = None
        self._move(Event.UNREACHABLE)
        self._drop_held()
        self._client.release(ReadPause.CONNECTING)
        self._do(gate.upstream_failed(reason))

    # ---- end ----

    def _end(self, *, reset: bool = False) -> None:
        """Only sending is left. Without `reset` the client gets the unsent bytes, then FIN; what it still sends is read
        and discarded for a short time, since closing with unread bytes would reset the connection before the client
        has read our response (RFC 9112, 9.6)."""
        if self._state >= ENDING:
            return
        if reset:
            self._reset()
            return
        self._stop()
        self._server.close()
        if self._client.eof:
            self._client.close()
        else:
            self._client.finish()
            self._client.release(
                ReadPause.GATE | ReadPause.FULL | ReadPause.CONNECTING | ReadPause.UNREAD | ReadPause.MEMORY
            )
        self._drop_held()
        self._unsent = self.unsent
        self._ctx.timers.arm(self._timer, self._ctx.timeouts.stalled if self._unsent else self._ctx.timeouts.linger)

    def _linger(self) -> None:
        """A timeout after the end: keep waiting while bytes move, else reset."""
        before, self._unsent = self._unsent, self.unsent
        if self._unsent == before:
            self._reset()
        else:
            timeouts = self._ctx.timeouts
            self._ctx.timers.arm(self._timer, timeouts.stalled if self._unsent else timeouts.linger)

    def _stop(self) -> None:
        self._move(Event.END)
        self._gate = None
        self._stop_connecting()
        self._stop_runs()

    def _reset(self) -> None:
        self._client.reset()  # before the splices are stopped: what their pipes hold must not leave any more
        self._server.reset()
        self._stop()
        self._leave_if_done()

    def _cut_off(self, policy_verdict: PolicyVerdict) -> None:
        """End an open connection with a record of its own; exchanges in progress get theirs from the gate."""
        gate = self._gate
        self._tell(policy_verdict)
        if gate is not None:
            self._gone(gate.client_lost(f"connection closed ({policy_verdict.reason})"))

    def _gone(self, actions: list[Action]) -> None:
        """The client is gone: of the gate's actions only records matter."""
        for action in actions:
            if isinstance(action, Emit):
                self._emit(action.record)
        self._reset()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 -- a fault ends this session, closed and recorded, never the worker
            self._broke(error)

    def _broke(self, error: Exception) -> None:
        over = self._state >= ENDING
        self._ctx.counts.errors += 1
        log.error("session %s > %s failed", self._source, self._destination, exc_info=error)
        try:
            if not over:
                self._tell(refusal(f"internal error: {type(error).__name__}: {error}", verdict=Verdict.ERROR))
        finally:
            try:
                self._reset()
            except Exception:  # a broken session must not end the worker
                log.exception("session %s > %s cannot be reset", self._source, self._destination)
                self._leave()

    def _leave_if_done(self) -> None:
        """Once both descriptors are closed: remove every reference to this session."""
        if self._client.gone and (self._server.gone or not self._server.made):
            self._leave()
            self._client.part()  # break the cycles: a closed session must not wait for the garbage collector
            self._server.part()

    def _leave(self) -> None:
        if self._state is CLOSED:
            return
        self._move(Event.CLOSE)
        self._ctx.policy_store.leave(self)
        self._ctx.timers.retire(self._timer)
        self._share.sessions -= 1
        self._share.stopped.pop(self, None)
        before, self.held = self.held, 0
        if before:
            self._ctx.memory.change(self._share, self, before)

    def _move(self, event: Event) -> None:
        self._state = NEXT[self._state][event]


def record_refusal(ctx: WorkerContext, source: HostPort, destination: HostPort, policy_verdict: PolicyVerdict) -> None:
    """Record the refusal of a connection whose endpoints have not been looked up."""
    index = ctx.policy_store.index
    who, whom = (index.identity(source.address), index.identity(destination.address)) if index else (0, 0)
    conn = Conn(source.address, source.port, destination.address, destination.port, who, whom)
    ctx.records(Connection(ctx.clock.now_ns(), conn, policy_verdict))


def named(sockaddr: tuple[Any, ...]) -> HostPort:
    """From a kernel address (a 4-tuple for IPv6). IPv4 is canonical already; IPv6 may be mapped or have a scope."""
    address: str = sockaddr[0]
    return HostPort(canonical(address) if ":" in address else address, sockaddr[1])
