"""Listens for Hubble's clients: on a unix socket for root and our own user, and on TCP with mutual TLS.

Flows show which pods communicate, so there is no TCP without certificates of the clients: with plain TCP, and with TLS
of the server alone, every pod could read them. What clients can use of the agent is bounded: connections, the time of a
handshake, streams, the size of a request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from l7proxy.errors import ConfigError
from l7proxy.hubble.certificates import CertificateFiles, Certificates
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
    async def serving(self) -> AsyncIterator[int]:
        """Yields the TCP port, 0 without TCP. ConfigError when an address or a certificate cannot be used."""
        logging.getLogger("grpc._cython.cygrpc").addFilter(_no_cancellation)
        server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_RPCS)
        server.add_generic_rpc_handlers(self._service.handlers())
        await _add_health(server)
        _add_reflection(server)
        with ExitStack() as files:
            port = _listen_tcp(server, self._tcp) if self._tcp else 0
            if self._socket:
                files.enter_context(_listening_unix(server, self._socket))
            await server.start()
            log.info("hubble: serving at %s", ", ".join(str(one) for one in (self._socket, self._tcp) if one))
            try:
                yield port
            finally:
                self._service.end()
                await server.stop(GRACE)


def _listen_tcp(server: grpc.aio.Server, tcp: Tcp) -> int:
    credentials = Certificates(tcp.files).credentials()
    try:
        port: int = server.add_secure_port(str(tcp), credentials)
    except RuntimeError as error:
        raise ConfigError(f"hubble-listen-address: cannot listen at {tcp}: is the port in use?") from error
    return port


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
