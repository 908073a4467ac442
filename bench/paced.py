"""An open-loop load: requests are due at a fixed rate, and a latency counts from when its request was due.

    python -m bench.paced HOST PORT --rate 5000 --seconds 5 [--connections 16] [--rules 10]

So a stall of the proxy counts for every request that had to wait, not only for the one in progress (coordinated
omission). A connection carries one request at a time; when all are busy, due requests wait for the first free one.
select(2) has deadlines in microseconds, uvloop's timers in milliseconds; the timer slack of 50 µs is removed
(prctl(2), PR_SET_TIMERSLACK). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import random
import select
import socket
import time

VARIANTS = 4096
PR_SET_TIMERSLACK = 29
DRAIN_SECONDS = 2.0
END = b"Hello, world\n"


def heads(host: str, rules: int, seed: int = 7) -> list[bytes]:
    """Heads of about 250 bytes that the rules allow."""
    rng = random.Random(seed)
    agents = ["curl/8.9.1", "python-requests/2.32.3", "Go-http-client/1.1", "okhttp/4.12.0"]
    return [
        (
            f"GET /api/s{rng.randrange(rules)}/users/{rng.randrange(10**6)}/items/{rng.randrange(1000)}"
            f"?page={rng.randrange(50)} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {rng.choice(agents)}\r\n"
            f"Accept: application/json\r\nX-Request-Id: {rng.getrandbits(128):032x}\r\n"
            f"X-Token: {rng.getrandbits(32):08x}\r\n\r\n"
        ).encode()
        for _ in range(VARIANTS)
    ]


class Paced:
    """The state of one run; times in seconds of the monotonic clock."""

    def __init__(self, address: tuple[str, int], connections: int, wanted: list[bytes]) -> None:
        self.wanted = wanted
        self.free = [socket.create_connection(address) for _ in range(connections)]
        for sock in self.free:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due: dict[socket.socket, float] = {}
        self.latencies: list[float] = []
        self.errors = 0
        self.unexpected = ""
        """The first unexpected response; b'' is the end of the connection."""
        self.sent = 0

    def run(self, rate: float, seconds: float) -> None:
        start = time.monotonic()
        total = int(rate * seconds)
        stop = start + seconds + DRAIN_SECONDS
        while (self.sent < total or self.due) and (now := time.monotonic()) < stop:
            while self.free and self.sent < total and (due := start + self.sent / rate) <= now:
                self._send(due)
            until = start + self.sent / rate if self.free and self.sent < total else stop
            ready, _, _ = select.select(list(self.due), (), (), max(0.0, until - time.monotonic()))
            for sock in ready:
                self._receive(sock)
        self.errors += total - len(self.latencies)  # never sent, or never answered

    def _send(self, due: float) -> None:
        sock = self.free.pop()
        sock.send(self.wanted[self.sent % VARIANTS])
        self.due[sock] = due
        self.sent += 1

    def _receive(self, sock: socket.socket) -> None:
        data = sock.recv(4096)
        if data.endswith(END) and data.startswith(b"HTTP/1.1 200"):
            self.latencies.append(time.monotonic() - self.due.pop(sock))
            self.free.append(sock)
        else:  # refused, cut, or split, which these small responses never are
            self.unexpected = self.unexpected or f"after {len(self.latencies)} answers: {data[:300]!r}"
            del self.due[sock]
            sock.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rules", type=int, default=10)
    args = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)
    paced = Paced((args.host, args.port), args.connections, heads(args.host, args.rules))
    gc.disable()
    paced.run(args.rate, args.seconds)
    found = sorted(paced.latencies) or [0.0]
    result = {
        "requests": len(paced.latencies),
        "errors": paced.errors,
        "unexpected": paced.unexpected,
        "seconds": args.seconds,
        "p50_us": round(found[len(found) // 2] * 1e6, 1),
        "p99_us": round(found[len(found) * 99 // 100] * 1e6, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
