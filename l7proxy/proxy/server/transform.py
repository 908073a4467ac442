"""A layer between a socket and its session: bytes from the socket in, plain bytes out, and back. TLS is one.

`SocketStream.carry` installs a transform. Session and gate do not notice it: they see plain bytes and ends.
"""

from __future__ import annotations

from typing import Protocol


class Transform(Protocol):
    """Both directions of one connection. It owns no socket: after each call its owner sends what `output` returns.

    A call may have output without input (a handshake), and input may yield nothing yet (half a record). `failure` after
    `receive`, and OSError from `receive_eof` or `send`, are failures: the output is still offered to the socket (an
    alert), then the connection is lost. ssl.SSLError is an OSError.
    """

    @property
    def unsent(self) -> int:
        """Plain bytes that `send` took and that are not in any output yet."""

    @property
    def unread(self) -> int:
        """Bytes received that are kept until more come, as far as the transform knows them: half a record at most."""

    @property
    def ended(self) -> bool:
        """The peer has ended its plain bytes; the socket may still be open."""

    @property
    def failure(self) -> OSError | None:
        """What is wrong with the bytes received. Plain bytes that came before it were valid; no more are received."""

    def receive(self, data: bytes) -> bytes:
        """Bytes from the socket. Returns the plain bytes that they complete. Must not raise: see `failure`."""

    def receive_eof(self) -> None:
        """The socket's EOF. OSError where the plain bytes may be incomplete."""

    def send(self, data: bytes) -> None:
        """Plain bytes for the peer."""

    def finish(self) -> None:
        """No more plain bytes come after those of `send`. Called once at most."""

    def output(self) -> bytes:
        """Bytes to send on the socket now."""
