"""Listens for Hubble's clients: on a unix socket for root and our own user, and on TCP with mutual TLS.

Flows show which pods communicate, so there is no TCP without certificates of the clients: with plain TCP, and with TLS
of the server alone, every pod could read them. What clients can use of the agent is bounded: connections, the time of a
handshake, streams, the size of a request.

Certificates that are missing or wrong when the agent starts are waited for: a Secret of Hubble must not keep the node
from its policies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from l7proxy.errors import ConfigError
from l7proxy.hubble.certificates import CertificateError, CertificateFiles, Certificates
from l7proxy.hubble.service import OBSERVER, PEER, Service
from l7proxy.link import local
from l7proxy.model.net import HostPort

log = logging.getLogger(__name__)

HEALTH_OF_OBSERVER: Final = "hubble.server.Observer"
"""The name that `hubble status` asks for."""
REFLECTION: Final = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")
"""The messages of both versions are equal on the wire."""
MAX_REQUEST: Final = 256 << 10
MAX_CONNECTIONS: Final = 128
MAX_RPCS: Final = 256
"""Of all kinds at a time: streams have a smaller limit of their own, so `hubble status` works beside them."""
HANDSHAKE: Final = 5
"""Seconds that a client has for TLS and HTTP/2 settings."""
CERTIFICATES_EVERY: Final = 1.0
"""Seconds between two looks for certificates that are missing at start."""
GRACE: Final = 1.0
"""Seconds that calls have to end when the agent stops. Streams do not end by themselves."""
OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a second agent must fail to bind
    ("grpc.max_receive_message_length", MAX_REQUEST),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE * 1000),
    ("grpc.max_concurrent_streams", MAX_RPCS),
)


@dataclass(frozen=True, slots=True)
class Tcp:
    address: IPv4Address | IPv6Address
    port: int
    files: CertificateFiles

    def __str__(self) -> str:
        return str(HostPort(str(self.address), self.port))


class HubbleServer:
    """`async with HubbleServer(service, socket=…, tcp=…).serving(): …`."""

    def __init__(self, service: Service, *, socket: Path | None = None, tcp: Tcp | None = None) -> None:
        self._service = service
        self._socket = socket
        self._tcp = tcp

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """ConfigError when an address cannot be used."""
        logging.getLogger("grpc._cython.cygrpc").addFilter(_no_cancellation)
        async with AsyncExitStack() as stack:
            if self._socket:
                server = await self._server()
                stack.enter_context(_listening_unix(server, self._socket))
                await stack.enter_async_context(self._started(server, self._socket))
            if self._tcp:
                await self._serve_tcp(self._tcp, stack)
            try:
                yield
            finally:
                self._service.end()

    async def _server(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_RPCS)
        server.add_generic_rpc_handlers(self._service.handlers())
        await _add_health(server)
        _add_reflection(server)
        return server

    @asynccontextmanager
    async def _started(self, server: grpc.aio.Server, where: object) -> AsyncIterator[None]:
        await server.start()
        log.info("hubble: serving at %s", where)
        try:
            yield
        finally:
            await server.stop(GRACE)

    async def _serve_tcp(self, tcp: Tcp, stack: AsyncExitStack) -> None:
        """Until the stack is closed; from now on, or from when the certificates can be used."""
        try:
            certificates = Certificates(tcp.files)
        except CertificateError as error:
            await stack.enter_async_context(_running(self._serve_later(tcp, error)))
        else:
            await stack.enter_async_context(self._listening_tcp(tcp, certificates))

    async def _serve_later(self, tcp: Tcp, fault: CertificateError) -> None:
        certificates = await _usable(tcp, fault)
        try:
            async with self._listening_tcp(tcp, certificates):
                await asyncio.Event().wait()
        except ConfigError as error:
            log.error("hubble: not served at %s: %s", tcp, error)

    @asynccontextmanager
    async def _listening_tcp(self, tcp: Tcp, certificates: Certificates) -> AsyncIterator[None]:
        server = await self._server()
        try:
            server.add_secure_port(str(tcp), certificates.credentials())
        except RuntimeError as error:
            raise ConfigError(f"hubble-listen-address: cannot listen at {tcp}: is the port in use?") from error
        async with self._started(server, tcp):
            yield


async def _usable(tcp: Tcp, fault: CertificateError) -> Certificates:
    """The certificates, as soon as they can be used. Each fault is logged once."""
    told = ""
    while True:
        if str(fault) != told:
            told = str(fault)
            log.warning("hubble: not served at %s until its certificates can be used: %s", tcp, told)
        await asyncio.sleep(CERTIFICATES_EVERY)
        try:
            return Certificates(tcp.files)
        except CertificateError as error:
            fault = error


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work, name="hubble")
        try:
            yield
        finally:
            task.cancel()


@contextmanager
def _listening_unix(server: grpc.aio.Server, path: Path) -> Iterator[None]:
    """Mode 0600 at every moment: gRPC makes the socket itself, so the mode comes from the umask."""
    _safe_directory(path.parent)
    local.make_free(path, "hubble-socket-path")
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise ConfigError(f"hubble-socket-path: cannot listen at {path}") from error
    finally:
        os.umask(before)
    with local.removing(path):
        yield


def _safe_directory(directory: Path) -> None:
    """Made if missing. Others must not be able to put a socket of their own in the place of ours."""
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise ConfigError(f"hubble-socket-path: {directory}: {error.strerror}") from error
    writable = stat.S_IWGRP | stat.S_IWOTH
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & writable:
        raise ConfigError(
            f"hubble-socket-path: others may write to {directory}: choose a directory that is root's, or ours, alone"
        )


def _no_cancellation(record: logging.LogRecord) -> bool:
    """gRPC reports a stream that is open when the server stops as an error."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


async def _add_health(server: grpc.aio.Server) -> None:
    servicer = health.aio.HealthServicer()
    for name in ("", HEALTH_OF_OBSERVER):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


def _add_reflection(server: grpc.aio.Server) -> None:
    names = (OBSERVER, PEER, health.SERVICE_NAME, reflection.SERVICE_NAME)
    servicer: Any = reflection.aio.ReflectionServicer(names)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in REFLECTION)
    )
