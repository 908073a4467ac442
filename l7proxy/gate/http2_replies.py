"""The proxy's own HTTP/2 responses: as in HTTP/1, or in gRPC's format for gRPC clients.

gRPC reads its status from trailers (trailers-only: one HEADERS frame with HTTP status 200), so a denial arrives as
PERMISSION_DENIED. Records show the HTTP status nevertheless: it is more precise, and the same for every client.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from l7proxy.gate.replies import printable
from l7proxy.wire.head import Header
from l7proxy.wire.http2_fields import FieldBlock

INTERNAL: Final = 13
UNAVAILABLE: Final = 14
_GRPC_STATUS: Final = {HTTPStatus.FORBIDDEN: 7}
"""Other statuses: UNAVAILABLE for server errors, INTERNAL for client errors (gRPC, http-grpc-status-mapping)."""

_MAX_MESSAGE: Final = 512


def plain(status: int, text: bytes, extra: tuple[Header, ...] = ()) -> FieldBlock:
    """The head of a short text response."""
    fields = [
        (b":status", b"%d" % status),
        (b"content-length", b"%d" % len(text)),
        (b"content-type", b"text/plain"),
        *extra,
    ]
    return FieldBlock(fields)


def trailers_only(status: int, text: bytes, extra: tuple[Header, ...] = ()) -> FieldBlock:
    """The gRPC response for an HTTP status."""
    code = _GRPC_STATUS.get(HTTPStatus(status), UNAVAILABLE if status >= 500 or status == 408 else INTERNAL)
    fields = [
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"%d" % code),
        (b"grpc-message", _message(text)),
        *extra,
    ]
    return FieldBlock(fields)


def _message(text: bytes) -> bytes:
    """Percent-encoded, as gRPC requires; only printable ASCII is kept."""
    return printable(text.decode("latin-1").strip()[:_MAX_MESSAGE]).replace(b"%", b"%25")
