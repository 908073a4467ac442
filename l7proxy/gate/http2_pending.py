"""Allowed requests not yet sent: the server is not connected yet, or accepts no more streams for now."""

from __future__ import annotations

from typing import Final

from l7proxy.gate.http2_peer import CONNECTION_WINDOW
from l7proxy.gate.http2_stream import Stream

MAX_WAITING: Final = CONNECTION_WINDOW >> 1
"""Most bytes of heads and bodies of pending requests. The other half of the client's window is for the streams open at
the server: else these could never finish, and the pending ones never begin."""


class PendingStreams:
    """Pending streams in order of arrival."""

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: dict[int, Stream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: Stream) -> None:
        self._streams[stream.id] = stream

    def drop(self, stream: Stream) -> None:
        self._streams.pop(stream.id, None)

    def clear(self) -> None:
        self._streams.clear()

    @property
    def heads(self) -> int:
        """Bytes of heads, which windows do not bound."""
        return sum(map(_head, self._streams.values())) if self._streams else 0

    def first(self, count: int) -> list[Stream]:
        """Remove and return the next `count` streams."""
        streams = list(self._streams.values())[: max(0, count)]
        for stream in streams:
            del self._streams[stream.id]
        return streams

    def excess(self) -> list[Stream]:
        """Remove and return streams above MAX_WAITING: the largest, so that they are few; of equal ones the newest."""
        held = sum(map(_held, self._streams.values()))
        streams: list[Stream] = []
        while held > MAX_WAITING:
            stream = max(self._streams.values(), key=lambda stream: (_held(stream), stream.id))
            del self._streams[stream.id]
            held -= _held(stream)
            streams.append(stream)
        return streams


def _head(stream: Stream) -> int:
    return stream.waiting.size if stream.waiting is not None else 0


def _held(stream: Stream) -> int:
    return _head(stream) + len(stream.up.queue)
