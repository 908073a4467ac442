"""Opens connections that carry one request each and then idle: python -m bench.idle HOST PORT COUNT

Prints `ready` when all were answered, and holds them until its standard input ends.
"""

from __future__ import annotations

import socket
import sys


def main() -> None:
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    held = []
    for number in range(count):
        sock = socket.create_connection((host, port), timeout=10)
        sock.sendall(f"GET /api/s0/users/{number}/x HTTP/1.1\r\nHost: {host}\r\nX-Token: 1\r\n\r\n".encode())
        answer = sock.recv(4096)
        if not answer.startswith(b"HTTP/1.1 200"):
            sys.exit(f"connection {number}: {answer[:80]!r}")
        held.append(sock)
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
