"""The methods of `observer.Observer` and `peer.Peer`.

A stream reads the ring at its own position: a client that is slow waits in `write`, and loses what the ring overwrites
meanwhile; it then gets one LostEvent with their number. Neither flows nor other clients wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, NoReturn, TypeAlias

import grpc

from l7proxy.errors import ConfigError
from l7proxy.flows import observer
from l7proxy.flows.ring import Ring
from l7proxy.hubble import request, status
from l7proxy.hubble.api.observer import observer_pb2
from l7proxy.hubble.api.peer import peer_pb2
from l7proxy.hubble.api.relay import relay_pb2
from l7proxy.hubble.encode import Encoders
from l7proxy.hubble.peers import Peers

log = logging.getLogger(__name__)

OBSERVER: Final = "observer.Observer"
PEER: Final = "peer.Peer"
MAX_STREAMS: Final = 64
"""Readers of flows or peers at a time: each costs time for every flow."""
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Unary: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
Stream: TypeAlias = Callable[[Any, Context], AsyncIterator[Any]]


class Service:
    """`node_name`: of this node, as in flows and among the peers."""

    def __init__(self, ring: Ring, peers: Peers, *, node_name: str) -> None:
        self._ring = ring
        self._peers = peers
        self._node_name = node_name
        self._encoders = Encoders(node_name)
        self._started_ns = time.monotonic_ns()
        self._streams: set[asyncio.Task[Any]] = set()
        self._ending = False

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        flows, unimplemented = observer_pb2.GetFlowsRequest, grpc.StatusCode.UNIMPLEMENTED

        async def no_events(asked: object, context: Context) -> AsyncIterator[bytes]:
            await context.abort(unimplemented, "l7proxy has no agent events and no debug events")
            yield b""

        of_observer = {
            "GetFlows": _stream(self.get_flows, flows, _as_it_is),
            "GetAgentEvents": _stream(no_events, observer_pb2.GetAgentEventsRequest, _as_it_is),
            "GetDebugEvents": _stream(no_events, observer_pb2.GetDebugEventsRequest, _as_it_is),
            "GetNodes": _unary(self.get_nodes, observer_pb2.GetNodesRequest),
            "GetNamespaces": _unary(self.get_namespaces, observer_pb2.GetNamespacesRequest),
            "ServerStatus": _unary(self.server_status, observer_pb2.ServerStatusRequest),
        }
        of_peer = {"Notify": _stream(self.notify, peer_pb2.NotifyRequest, _encoded)}
        return (
            grpc.method_handlers_generic_handler(OBSERVER, of_observer),
            grpc.method_handlers_generic_handler(PEER, of_peer),
        )

    async def get_flows(self, asked: observer_pb2.GetFlowsRequest, context: Context) -> AsyncIterator[bytes]:
        """A fault in the request has the code Unknown, as Hubble's has: its client prints the bare text."""
        try:
            wanted, mask = request.read(asked)
        except request.FirstAndFollowError as error:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except ConfigError as error:
            await _abort(context, grpc.StatusCode.UNKNOWN, str(error))
        async with self._stream(context), aclosing(observer.batches(self._ring, wanted)) as batches:
            with self._encoders.of(mask) as encoder:
                async for batch in batches:
                    for response in encoder.responses(batch):
                        yield response

    async def notify(self, asked: peer_pb2.NotifyRequest, context: Context) -> AsyncIterator[Any]:
        async with self._stream(context), aclosing(self._peers.notifications()) as notifications:
            async for one in notifications:
                yield one

    async def get_nodes(self, asked: object, context: Context) -> observer_pb2.GetNodesResponse:
        """This node alone. Cilium's agents have no answer, but a client connected to one node expects one."""
        now, this = (
            status.server_status(self._ring, time.monotonic_ns() - self._started_ns),
            self._peers.of(self._node_name),
        )
        node = observer_pb2.Node(
            name=self._node_name,
            version=now.version,
            address=this.address,
            state=relay_pb2.NODE_CONNECTED,
            tls=observer_pb2.TLS(enabled=bool(this.server_name), server_name=this.server_name),
            uptime_ns=now.uptime_ns,
            num_flows=now.num_flows,
            max_flows=now.max_flows,
            seen_flows=now.seen_flows,
        )
        return observer_pb2.GetNodesResponse(nodes=[node])

    async def get_namespaces(self, asked: object, context: Context) -> observer_pb2.GetNamespacesResponse:
        found = await status.namespaces(self._ring)
        listed = [observer_pb2.Namespace(cluster=cluster, namespace=name) for cluster, name in found]
        return observer_pb2.GetNamespacesResponse(namespaces=listed)

    async def server_status(self, asked: object, context: Context) -> observer_pb2.ServerStatusResponse:
        return status.server_status(self._ring, time.monotonic_ns() - self._started_ns)

    def end(self) -> None:
        """End all streams: they do not end by themselves, and gRPC would report each as an error."""
        self._ending = True
        for task in self._streams:
            task.cancel()

    @asynccontextmanager
    async def _stream(self, context: Context) -> AsyncIterator[None]:
        """Count this call among the open streams while it runs."""
        if len(self._streams) >= MAX_STREAMS:
            await _abort(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"too many streams, the limit is {MAX_STREAMS}: try again later",
            )
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._ending:
                raise
            await _abort(context, grpc.StatusCode.UNAVAILABLE, "the agent is stopping")
        finally:
            self._streams.discard(task)


async def _abort(context: Context, code: grpc.StatusCode, text: str) -> NoReturn:
    """As the type of `abort` says; mypy does not see it through the library."""
    await context.abort(code, text)
    raise AssertionError("abort raises")


def _as_it_is(message: bytes) -> bytes:
    return message


def _encoded(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded


def _unary(method: Unary, kind: Any) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(method, kind.FromString, _encoded)


def _stream(method: Stream, kind: Any, encode: Callable[[Any], bytes]) -> grpc.RpcMethodHandler:
    return grpc.unary_stream_rpc_method_handler(method, kind.FromString, encode)
