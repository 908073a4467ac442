"""Bodies: how many bytes of the input belong to a message, and whether it has ended. The bytes themselves pass by."""

from __future__ import annotations

from typing import Protocol

from l7proxy.wire.chunked import ChunkedBody
from l7proxy.wire.head import CHUNKED, UNTIL_CLOSE


class Body(Protocol):
    """`feed` says how many bytes of `data` are the body's; when `done`, the rest is not. PeerError on a fault."""

    done: bool

    def feed(self, data: bytes) -> int: ...


class LengthBody:
    """A body of a declared length."""

    __slots__ = ("_left", "done")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> int:
        taken = min(self._left, len(data))
        self._left -= taken
        self.done = self._left == 0
        return taken


class OpenBody:
    """A response that ends when its connection does."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> int:
        return len(data)


def body(framing: int) -> Body | None:
    """The reader of a body, or None when there is none."""
    if framing == 0:
        return None
    if framing == CHUNKED:
        return ChunkedBody()
    return OpenBody() if framing == UNTIL_CLOSE else LengthBody(framing)
