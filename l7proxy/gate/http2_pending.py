"""Requests that are allowed and not yet at the server: it is still to be reached, or takes no more streams for now."""

from __future__ import annotations

from typing import Final

from l7proxy.gate.http2_peer import CONNECTION_WINDOW
from l7proxy.gate.http2_stream import Stream

MAX_WAITING: Final = CONNECTION_WINDOW >> 1
"""Bytes of heads and bodies that may wait for a place at the server: the other half of the client's window is for the
streams that have one, else they could never end, and those that wait never begin."""


class PendingStreams:
    """In the order in which they came."""

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
        """Bytes of heads, the one thing that windows do not bound."""
        return sum(map(_head, self._streams.values())) if self._streams else 0

    def first(self, count: int) -> list[Stream]:
        """The next so many, which wait no more."""
        streams = list(self._streams.values())[: max(0, count)]
        for stream in streams:
            del self._streams[stream.id]
        return streams

    def excess(self) -> list[Stream]:
        """What is too much to be kept, and waits no more: the largest, so that they are few; of equals the last."""
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
