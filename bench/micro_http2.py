"""µs of the HTTP/2 gate alone (with l7proxy.wire, no socket, no policy) per gRPC unary call, compared with h2.

Run: .venv/bin/python bench/micro_http2.py [ROUNDS]
A call is HEADERS and DATA from the client; HEADERS, DATA and trailers from the server. "Relaying with h2" does the same
with two connections of that library (receive, send on), validation off: without policy, records or limits.
"""

from __future__ import annotations

import itertools
import platform
import sys
import time
from collections.abc import Callable, Iterator

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes
from hpack import Encoder

from l7proxy.gate.clock import Clock
from l7proxy.gate.http2 import Http2Gate
from l7proxy.gate.options import HttpOptions
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.wire import http2_frames as frames

CONN = Conn("10.0.0.1", 40000, "10.0.0.2", 80, 1001, 1002)
ALLOWED = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS)
DENIED = PolicyVerdict(Verdict.DROPPED, Direction.INGRESS, reason="no rule matched")
COUNT = 512

Fields = list[tuple[bytes, bytes]]
Call = tuple[int, bytes, bytes]
"""(stream, what the client sends, what the server answers)."""

RESPONSE: Fields = [
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity"),
]
TRAILERS: Fields = [(b"grpc-status", b"0"), (b"grpc-message", b"")]


def request(number: int, *, varied: bool) -> Fields:
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/shop.Catalog/Get%d" % (number % 40) if varied else b"/shop.Catalog/Get"),
        (b":authority", b"catalog.shop:50051"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"grpc-python/1.70.0 grpc-c/45.0.0 (linux; chttp2)"),
        (b"grpc-accept-encoding", b"identity, deflate, gzip"),
    ]
    if varied:
        fields += [(b"grpc-timeout", b"%dm" % (900 + number % 99)), (b"x-request-id", b"%032x" % (number * 0x9E3779B9))]
    return fields


class Peers:
    """A client and a server that make endless calls on one connection."""

    def __init__(self, *, varied: bool, body: bytes) -> None:
        self._client, self._server = Encoder(), Encoder()
        self._varied, self._body = varied, b"\0%b%b" % (len(body).to_bytes(4, "big"), body)
        self._numbers = itertools.count()

    def calls(self) -> Iterator[Call]:
        for number in itertools.islice(self._numbers, COUNT):
            stream = 2 * number + 1
            block = self._client.encode(request(number, varied=self._varied))
            asked = frames.headers(stream, block, end=False) + frames.frame(0, 1, stream, self._body)
            answered = frames.headers(stream, self._server.encode(RESPONSE), end=False)
            answered += frames.frame(0, 0, stream, self._body)
            answered += frames.headers(stream, self._server.encode(TRAILERS), end=True)
            yield stream, asked, answered


Step = Callable[[Call], None]
OPEN = frames.settings([(4, 1 << 20)]) + frames.window_update(0, 1 << 30)


def through_gate(verdict: PolicyVerdict) -> Step:
    def judge(asked: Request) -> PolicyVerdict:
        return verdict

    seconds = itertools.count()

    def now_ns() -> int:
        """The clock advances a second per call, so that denied calls do not exhaust the budget."""
        return time.time_ns() + next(seconds) * 1_000_000_000

    gate = Http2Gate(judge, CONN, Clock(now_ns, now_ns), HttpOptions())
    gate.started()
    gate.from_client(OPEN)
    from_client, from_server = gate.from_client, gate.from_server
    first = True

    def run(call: Call) -> None:
        nonlocal first
        from_client(call[1])
        if verdict is DENIED:
            return
        if first:
            first = False
            gate.connected()
            from_server(OPEN)
        from_server(call[2])

    return run


def through_h2() -> Step:
    def side(*, client: bool) -> H2Connection:
        connection = H2Connection(
            H2Configuration(
                client_side=client,
                header_encoding=False,
                validate_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_inbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        connection.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1 << 30
        connection.initiate_connection()
        connection.data_to_send()
        connection.receive_data(OPEN if client else frames.PREFACE + OPEN)
        connection.increment_flow_control_window(1 << 30)
        return connection

    front, back = side(client=False), side(client=True)

    def relay(events: list[object], to: H2Connection) -> None:
        for event in events:
            headers, data = getattr(event, "headers", None), getattr(event, "data", None)
            ended = getattr(event, "stream_ended", None) is not None
            if headers is not None:
                to.send_headers(event.stream_id, headers, end_stream=ended)  # type: ignore[attr-defined]
            elif data is not None:
                to.send_data(event.stream_id, data, end_stream=ended)  # type: ignore[attr-defined]
        to.data_to_send()

    def run(call: Call) -> None:
        relay(list(front.receive_data(call[1])), back)
        relay(list(back.receive_data(call[2])), front)

    return run


def measure(name: str, peers: Peers, step: Step, rounds: int) -> None:
    best = float("inf")
    for _ in range(rounds):
        calls = list(peers.calls())
        before = time.process_time_ns()
        for call in calls:
            step(call)
        best = min(best, time.process_time_ns() - before)
    print(f"{name:52} {best / COUNT / 1000:7.2f} µs")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    print(f"Python {platform.python_version()} {platform.machine()}, best of {rounds} rounds of {COUNT}")
    same = {"varied": False, "body": b"x" * 32}
    varied = {"varied": True, "body": b"x" * 32}
    measure("gate: unary call", Peers(**same), through_gate(ALLOWED), rounds)  # type: ignore[arg-type]
    measure("gate: unary call, method and metadata varied", Peers(**varied), through_gate(ALLOWED), rounds)  # type: ignore[arg-type]
    measure("gate: unary call denied", Peers(**same), through_gate(DENIED), rounds)  # type: ignore[arg-type]
    measure("relaying with h2: unary call", Peers(**same), through_h2(), rounds)  # type: ignore[arg-type]
    measure("relaying with h2: unary call, varied", Peers(**varied), through_h2(), rounds)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
