"""The proxy's own HTTP/1 responses: denials and errors. Short plain text with a Content-Length."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

DENIED: Final = b"Access denied\r\n"

_UNPRINTABLE = re.compile(rb"[^ -~]")
_MAX_REASON: Final = 512


def reply(status: int, text: bytes, *, close: bool, head_only: bool = False, fields: bytes = b"") -> bytes:
    """`fields` are complete header lines. `head_only`: the response to HEAD, with the same head and no body."""
    return b"HTTP/1.1 %d %b\r\ncontent-length: %d\r\ncontent-type: text/plain\r\n%b%b\r\n%b" % (
        status,
        HTTPStatus(status).phrase.encode(),
        len(text),
        fields,
        b"connection: close\r\n" if close else b"",
        b"" if head_only else text,
    )


def sentence(reason: str) -> bytes:
    """The reason as a body of one line. It may quote the peer, so only printable ASCII is kept."""
    return printable(reason) + b"\r\n"


def printable(reason: str) -> bytes:
    return _UNPRINTABLE.sub(b"?", reason[:_MAX_REASON].encode("ascii", "replace"))
