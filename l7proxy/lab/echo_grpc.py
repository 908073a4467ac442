"""The built-in gRPC server of pods: service `echo.Echo`, one method of each kind, messages are plain bytes.

Unary         the message itself
ServerStream  the message, repeated as often as the metadata `x-count` says (default 3)
ClientStream  the number of messages and bytes received, as JSON
Bidi          every message, as it arrives
Each call's trailing metadata names the pod (`x-server`) and the client's address (`x-peer`). With the metadata `x-fail`
the call ends with that status. It is grpcio's own server, in threads: a real peer, and not a dependency of l7proxy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import unquote

from l7proxy.errors import ConfigError
from l7proxy.model.net import canonical

SERVICE: Final = "echo.Echo"
THREADS: Final = 64
"""Concurrent calls; further calls wait."""

_OPTIONS: Final = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # a port in use is an error
]


class GrpcEcho:
    """One echo server, which serves once constructed. ConfigError when it cannot."""

    def __init__(self, port: int, server_name: str) -> None:
        try:
            import grpc  # loaded only in pods that serve gRPC
        except ImportError as error:
            raise ConfigError(
                "grpc: grpcio is not installed, it is required for the server: run `pip install grpcio`"
            ) from error
        self._grpc = grpc
        self._name = server_name
        self._server = grpc.server(ThreadPoolExecutor(THREADS), options=_OPTIONS)
        methods = {
            "Unary": grpc.unary_unary_rpc_method_handler(self._unary),
            "ServerStream": grpc.unary_stream_rpc_method_handler(self._server_stream),
            "ClientStream": grpc.stream_unary_rpc_method_handler(self._client_stream),
            "Bidi": grpc.stream_stream_rpc_method_handler(self._bidi),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        try:
            self._server.add_insecure_port(f"[::]:{port}")
        except RuntimeError as error:
            raise ConfigError(f"grpc:{port}: {error}") from error
        self._server.start()

    def close(self) -> None:
        """Cancels calls in progress."""
        self._server.stop(None)

    def _unary(self, message: bytes, context: Any) -> bytes:
        self._begin(context)
        return message

    def _server_stream(self, message: bytes, context: Any) -> Iterator[bytes]:
        asked = self._begin(context)
        for _ in range(int(asked.get("x-count", "3"))):
            yield message

    def _client_stream(self, messages: Iterator[bytes], context: Any) -> bytes:
        self._begin(context)
        count = size = 0
        for message in messages:
            count, size = count + 1, size + len(message)
        return json.dumps({"messages": count, "bytes": size}).encode()

    def _bidi(self, messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self._begin(context)
        yield from messages

    def _begin(self, context: Any) -> dict[str, str]:
        """The client's metadata; aborts a call that asked to fail."""
        asked = {str(key): str(value) for key, value in context.invocation_metadata()}
        context.set_trailing_metadata((("x-server", self._name), ("x-peer", _address(context.peer()))))
        if "x-fail" in asked:
            context.abort(self._grpc.StatusCode[asked["x-fail"]], "as asked")
        return asked


def _address(peer: str) -> str:
    """`ipv6:%5B::ffff:10.0.0.1%5D:4711` → `10.0.0.1`."""
    host = unquote(peer).partition(":")[2].rpartition(":")[0]
    return canonical(host.strip("[]").partition("%")[0])
