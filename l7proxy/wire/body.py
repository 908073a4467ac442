"""Tracks message bodies: how many bytes of the input belong to a body, and whether it has ended. Copies nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from l7proxy.wire.chunked import ChunkedBody
from l7proxy.wire.head import CHUNKED, UNTIL_CLOSE, Header

ENDLESS: Final = 1 << 62
"""More bytes than any connection carries."""


class Body(Protocol):
    """`feed` returns how many bytes of `data` belong to the body; once `done`, no more do. PeerError on a fault.

    The next `plain` bytes belong to the body whatever they are. Up to that many may be forwarded unread: call `skip`.
    """

    done: bool

    def feed(self, data: bytes) -> int: ...
    @property
    def plain(self) -> int: ...
    def skip(self, count: int) -> None: ...


class LengthBody:
    """A body of a declared length."""

    __slots__ = ("_left", "done")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> int:
        taken = min(self._left, len(data))
        self.skip(taken)
        return taken

    @property
    def plain(self) -> int:
        return self._left

    def skip(self, count: int) -> None:
        assert count <= self._left
        self._left -= count
        self.done = self._left == 0


class OpenBody:
    """A response body that ends when the connection closes."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> int:
        return len(data)

    @property
    def plain(self) -> int:
        return ENDLESS

    def skip(self, count: int) -> None:
        """Nothing to count: the length is not known."""


def body(framing: int, head: Sequence[Header] = ()) -> Body | None:
    """The reader for a body; None when the message has no body. Trailers must not repeat a field of `head`."""
    if framing == 0:
        return None
    if framing == CHUNKED:
        return ChunkedBody(head)
    return OpenBody() if framing == UNTIL_CLOSE else LengthBody(framing)
