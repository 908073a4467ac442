"""The built-in HTTP/2 server of pods (prior knowledge): like the HTTP echo, it answers with what it received.

The library h2 checks the protocol: a connection that breaks a rule ends. Pseudo-headers are listed among the headers,
in order. With `trailers` in TE the response has the trailer `x-echo`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any, Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from l7proxy.model.net import HostPort

HeaderList = list[tuple[bytes, bytes]]
_READ: Final = 65536


@dataclass
class _Request:
    headers: HeaderList
    trailers: HeaderList = field(default_factory=list)
    length: int = 0


class Http2Echo:
    """One echo server; `server_name` identifies the pod behind a Service."""

    def __init__(self, server_name: str) -> None:
        self.server_name = server_name

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: HostPort) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        requests: dict[int, _Request] = {}
        with contextlib.suppress(ConnectionError, h2.exceptions.ProtocolError):
            writer.write(connection.data_to_send())
            while data := await reader.read(_READ):
                try:
                    for event in connection.receive_data(data):
                        self._take(connection, event, requests, peer)
                finally:
                    writer.write(connection.data_to_send())
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def _take(
        self, connection: h2.connection.H2Connection, event: object, requests: dict[int, _Request], peer: HostPort
    ) -> None:
        match event:
            case h2.events.RequestReceived():
                requests[event.stream_id] = _Request([(bytes(n), bytes(v)) for n, v in event.headers])
            case h2.events.TrailersReceived():
                requests[event.stream_id].trailers = [(bytes(n), bytes(v)) for n, v in event.headers]
            case h2.events.DataReceived():
                requests[event.stream_id].length += len(event.data)
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamReset():
                requests.pop(event.stream_id, None)
            case h2.events.StreamEnded():
                self._answer(connection, event.stream_id, requests.pop(event.stream_id), peer)

    def _answer(self, connection: h2.connection.H2Connection, stream: int, request: _Request, peer: HostPort) -> None:
        """A small body: it fits into the window of a new stream."""
        body = json.dumps(self._description(request, peer)).encode() + b"\n"
        head = dict(request.headers)
        connection.send_headers(
            stream,
            [(":status", "200"), ("content-type", "application/json"), ("content-length", str(len(body)))],
            end_stream=head.get(b":method") == b"HEAD",
        )
        if head.get(b":method") == b"HEAD":
            return
        trailers = head.get(b"te") == b"trailers"
        connection.send_data(stream, body, end_stream=not trailers)
        if trailers:
            connection.send_headers(stream, [("x-echo", self.server_name)], end_stream=True)

    def _description(self, request: _Request, peer: HostPort) -> dict[str, Any]:
        head = dict(request.headers)
        return {
            "server": self.server_name,
            "method": head.get(b":method", b"").decode("latin-1"),
            "path": head.get(b":path", b"").decode("latin-1"),
            "headers": _texts(request.headers),
            "trailers": _texts(request.trailers),
            "body": request.length,
            "peer": peer.address,
            "peer_port": peer.port,
        }


def _texts(headers: HeaderList) -> list[list[str]]:
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers]
