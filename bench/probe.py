"""Waits until a policy is enforced, from inside a pod: python -m bench.probe HOST

Each line of standard input says what to wait for: `STATE PORT [PATH]…` is `open 91`, `closed 91`, `200 80 /api/x`,
`403 80 /api/x`; several are joined by `;` and must hold together. It retries on a new connection each time, and prints
when all held: nanoseconds of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import socket
import sys
import time

PAUSE = 0.0005
PATIENCE = 30.0


def holds(host: str, wanted: str) -> bool:
    state, port, *path = wanted.split()
    try:
        with socket.create_connection((host, int(port)), timeout=2) as sock:
            if state in ("open", "closed"):
                return state == "open"
            sock.sendall(f"GET {path[0]} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return sock.recv(4096).startswith(f"HTTP/1.1 {state} ".encode())
    except OSError:
        return state == "closed"


def wait(host: str, clauses: list[str]) -> int:
    end = time.monotonic() + PATIENCE
    while not all(holds(host, each) for each in clauses):
        if time.monotonic() > end:
            return 0
        time.sleep(PAUSE)
    return time.monotonic_ns()


def main() -> None:
    for line in sys.stdin:
        print(wait(sys.argv[1], line.strip().split(";")), flush=True)


if __name__ == "__main__":
    main()
