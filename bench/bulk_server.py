"""Sends and receives bodies as fast as possible, without parsing them: python -m bench.bulk_server PORT

GET /bulk/N is answered with N bytes; POST is answered after its whole body (with a Content-Length) has arrived.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading

BLOCK = bytearray(1 << 20)
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n"


def serve(sock: socket.socket) -> None:
    """Serves until the client closes or resets the connection."""
    with contextlib.suppress(ConnectionError):
        _exchanges(sock)


def _exchanges(sock: socket.socket) -> None:
    into = bytearray(len(BLOCK))
    held = b""
    with sock:
        while True:
            while b"\r\n\r\n" not in held:
                data = sock.recv(65536)
                if not data:
                    return
                held += data
            head, _, held = held.partition(b"\r\n\r\n")
            if head.startswith(b"GET"):
                size = int(head.split()[1].rpartition(b"/")[2])
                sock.sendall(ANSWER % size)
                send(sock, size)
            else:
                held = take(sock, held, int(LENGTH.search(head)[1]), into)  # type: ignore[index] # bench.rules has no other
                sock.sendall(ANSWER % 0)


def send(sock: socket.socket, size: int) -> None:
    block = memoryview(BLOCK)
    while size:
        part = block[: min(size, len(block))]
        sock.sendall(part)
        size -= len(part)


def take(sock: socket.socket, held: bytes, size: int, into: bytearray) -> bytes:
    """Read a body; `held` are the bytes already read of it and of what follows."""
    left = size - len(held)
    while left > 0:
        got = sock.recv_into(into, min(left, len(into)))
        if not got:
            raise ConnectionError("the client went away in its body")
        left -= got
    return held[size:]


def main() -> None:
    listener = socket.create_server(("", int(sys.argv[1])), backlog=512)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True, name="connection").start()


if __name__ == "__main__":
    main()
