"""µs of the HTTP/1 gate alone (with l7proxy.wire, no socket, no policy) per request and response; varied requests.

Run: .venv/bin/python bench/micro_http1.py [ROUNDS]
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable

from l7proxy.gate.http1 import HttpGate
from l7proxy.gate.options import HttpOptions
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.wire import http1_fast, http1_strict

CONN = Conn("10.0.0.1", 40000, "10.0.0.2", 80, 1001, 1002)
ALLOWED = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS)
DENIED = PolicyVerdict(Verdict.DROPPED, Direction.INGRESS, reason="no rule matched")
COUNT = 512


def request(number: int, body: bytes = b"") -> bytes:
    length = b"content-length: %d\r\n" % len(body) if body else b""
    return (
        b"%b /api/v1/items/%d?page=%d HTTP/1.1\r\nHost: backend.shop:8080\r\nUser-Agent: bench/%d\r\nAccept: */*\r\n"
        b"Accept-Encoding: gzip, deflate\r\nX-Request-Id: %032x\r\n%b\r\n%b"
    ) % (b"POST" if body else b"GET", number, number % 7, number % 5, number * 0x9E3779B97F4A7C15, length, body)


def response(number: int) -> bytes:
    body = b'{"item": %d}' % number
    return (
        b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sun, 23 Nov 2025 23:%02d:00 GMT\r\n"
        b'Content-Type: application/json\r\nContent-Length: %d\r\nConnection: keep-alive\r\nETag: "%x"\r\n\r\n%b'
    ) % (number % 60, len(body), number, body)


def through_gate(requests: list[bytes], responses: list[bytes], verdict: PolicyVerdict) -> Callable[[], None]:
    def judge(asked: Request) -> PolicyVerdict:
        return verdict

    gate = HttpGate(judge, CONN, time.time_ns, HttpOptions())

    def run() -> None:
        from_client, from_server = gate.from_client, gate.from_server
        if verdict is DENIED:
            for asked in requests:
                from_client(asked)
            return
        for asked, answer in zip(requests, responses, strict=True):
            from_client(asked)
            from_server(answer)

    return run


def measure(name: str, run: Callable[[], object], count: int, rounds: int) -> None:
    best = float("inf")
    for _ in range(rounds):
        before = time.process_time_ns()
        run()
        best = min(best, time.process_time_ns() - before)
    print(f"{name:44} {best / count / 1000:7.2f} µs")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    print(f"Python {platform.python_version()} {platform.machine()}, best of {rounds} rounds of {COUNT}")
    gets = [request(number) for number in range(COUNT)]
    posts = [request(number, b"x" * 64) for number in range(COUNT)]
    answers = [response(number) for number in range(COUNT)]
    chunked = [a.replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\nX: ") for a in answers]
    chunked = [a[: a.index(b"\r\n\r\n") + 4] + b"d\r\nhello, chunks\r\n0\r\n\r\n" for a in chunked]
    measure("request head, fast reader", lambda: [http1_fast.request(each) for each in gets], COUNT, rounds)
    measure(
        "response head, fast reader", lambda: [http1_fast.response(each, b"GET") for each in answers], COUNT, rounds
    )
    measure(
        "request head, strict reader", lambda: [http1_strict.request(e) for e in gets[:64]], 64, max(rounds // 8, 2)
    )
    measure("gate: GET and answer", through_gate(gets, answers, ALLOWED), COUNT, rounds)
    measure("gate: GET and chunked answer", through_gate(gets, chunked, ALLOWED), COUNT, rounds)
    measure("gate: POST of 64 bytes and answer", through_gate(posts, answers, ALLOWED), COUNT, rounds)
    measure("gate: GET denied", through_gate(gets, answers, DENIED), COUNT, rounds)


if __name__ == "__main__":
    main()
