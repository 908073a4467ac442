"""Bodies: how many bytes of the input belong to a message, and whether it has ended. The bytes themselves pass by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from l7proxy.wire.chunked import ChunkedBody
from l7proxy.wire.head import CHUNKED, UNTIL_CLOSE, Header

ENDLESS: Final = 1 << 62
"""More bytes than will ever come."""


class Body(Protocol):
    """`feed` says how many bytes of `data` are the body's; when `done`, the rest is not. PeerError on a fault.

    `plain` of the bytes to come are the body's whatever they are; so many, or fewer, may be passed on unseen: `skip`.
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
    """A response that ends when its connection does."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> int:
        return len(data)

    @property
    def plain(self) -> int:
        return ENDLESS

    def skip(self, count: int) -> None:
        """There is no end to come nearer to."""


def body(framing: int, head: Sequence[Header] = ()) -> Body | None:
    """The reader of a body, or None when there is none. Trailers must not repeat a field of `head`."""
    if framing == 0:
        return None
    if framing == CHUNKED:
        return ChunkedBody(head)
    return OpenBody() if framing == UNTIL_CLOSE else LengthBody(framing)
