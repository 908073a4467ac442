"""The usual HTTP/1 heads: what a build reads natively. This module stands in where there is no build, and reads none.

Usual is what nearly all clients and servers send: HTTP/1.1; a path that is its own normal form; header names of
letters, digits and hyphens, values of visible ASCII; Host, Content-Length, Connection and Transfer-Encoding at most
once and as http1_fast reads them; no Expect, no Upgrade; and for a request a Host that is no IPv6 address, and a body
of known length. http1_usual.pyx reads it. Law: where that returns a head, http1_fast without it returns the same one.
"""

from __future__ import annotations

UsualRequest = tuple[bytes, bytes, bytes, int, bool, bool, int]
"""(method, target, host, framing, keep_alive, traced, size); `traced`: it has a header that may hold a trace id."""

UsualResponse = tuple[int, int, bool, int]
"""(status, framing, keep_alive, size), before the request's method is taken into account."""


def request(data: bytes) -> UsualRequest | None:
    """The head at the beginning of `data`; None when it is incomplete or not usual."""
    return None


def response(data: bytes) -> UsualResponse | None:
    """The head at the beginning of `data`; None when it is incomplete or not usual."""
    return None
