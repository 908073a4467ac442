"""The few responses that are our own: refusals and failures. Short, plain text, framed by a length."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

DENIED: Final = b"Access denied\r\n"

_UNPRINTABLE = re.compile(rb"[^ -~]")
_MAX_REASON: Final = 512


def reply(status: int, text: bytes, *, close: bool, head_only: bool = False, fields: bytes = b"") -> bytes:
    """`fields` are whole header lines. `head_only`: the answer to HEAD, which has the same head."""
    return b"HTTP/1.1 %d %b\r\ncontent-length: %d\r\ncontent-type: text/plain\r\n%b%b\r\n%b" % (
        status,
        HTTPStatus(status).phrase.encode(),
        len(text),
        fields,
        b"connection: close\r\n" if close else b"",
        b"" if head_only else text,
    )


def sentence(reason: str) -> bytes:
    """A reason as a body of its own line. It may quote the peer, so only printable ASCII is kept."""
    return printable(reason) + b"\r\n"


def printable(reason: str) -> bytes:
    return _UNPRINTABLE.sub(b"?", reason[:_MAX_REASON].encode("ascii", "replace"))
