"""Encodes and decodes frames: a 4-byte big-endian length, then one msgpack value of a known type.

Pure: bytes in, messages out, no socket. An invalid frame is a LinkError with the reason: it ends the connection, not
the process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec

from l7proxy.errors import LinkError
from l7proxy.link.messages import MAX_FRAME, FromAgent, FromWorker

M = TypeVar("M")
_LENGTH: Final = struct.Struct(">I")
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(message: FromWorker | FromAgent, *, max_frame: int = MAX_FRAME) -> bytes:
    """One frame. LinkError when it is longer than the other end accepts."""
    body = _ENCODER.encode(message)
    if len(body) > max_frame:
        raise LinkError(f"a {type(message).__name__} of {len(body)} bytes exceeds the frame limit of {max_frame}")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder(Generic[M]):
    """Decodes messages from a stream in pieces of any size. After a LinkError it yields nothing more."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M], *, max_frame: int = MAX_FRAME) -> None:
        self._decoder = decoder
        self._max_frame = max_frame
        self._buffer = bytearray()
        self._broken = ""

    def feed(self, data: bytes) -> Iterator[M]:
        """The messages that `data` completes. Must be iterated to the end."""
        if self._broken:
            raise LinkError(self._broken)
        self._buffer += data
        try:
            while (body := self._next_body()) is not None:
                yield self._decode(body)
        except LinkError as error:
            self._broken = str(error)
            self._buffer.clear()
            raise

    def eof(self) -> None:
        """The stream has ended. LinkError if that is inside a frame."""
        if self._buffer:
            raise LinkError(f"the stream ended inside a frame, {len(self._buffer)} bytes into it")

    def _next_body(self) -> bytes | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self._max_frame:
            raise LinkError(f"a frame of {length} bytes exceeds the limit of {self._max_frame}: not the link protocol")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(memoryview(self._buffer)[_LENGTH.size : end])
        del self._buffer[:end]
        return body

    def _decode(self, body: bytes) -> M:
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise LinkError(f"a frame of {len(body)} bytes is not a valid message: {error}") from error


def from_worker(*, max_frame: int = MAX_FRAME) -> FrameDecoder[FromWorker]:
    """The agent's decoder."""
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromWorker)
    return FrameDecoder(decoder, max_frame=max_frame)


def from_agent(*, max_frame: int = MAX_FRAME) -> FrameDecoder[FromAgent]:
    """A worker's decoder."""
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromAgent)
    return FrameDecoder(decoder, max_frame=max_frame)
