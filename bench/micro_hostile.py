"""CPU of the gates per received byte, for ordinary requests and for each hostile input of bench/hostile.py.

The real gates, readers and rules; no sockets, records are not sent. A server without cost answers each request that
reaches it. Columns: ns per received byte, its ratio to the most expensive ordinary request, ms of the longest single
read, and connections opened (a gate that ended its connection needs a new one).

Run: .venv/bin/python -m bench.micro_hostile [SECONDS PER LINE] [WORDS IN ITS NAME…]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.hostile import ATTACKS, RULES, Attack
from l7proxy import compiled
from l7proxy.gate.actions import Action, Close, Connect, Gate, SwitchGate, ToServer
from l7proxy.gate.clock import Clock
from l7proxy.gate.detect import gate_for
from l7proxy.gate.options import HttpOptions
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Verdict
from l7proxy.policy.combine import VerdictCache, evaluate_l7
from l7proxy.policy.decide import PortPolicy
from l7proxy.policy.decision import Decision
from l7proxy.policy.http_table import HttpTable
from l7proxy.policy.l7 import KINDS
from l7proxy.policy.rules import HttpRules
from l7proxy.wire import http2_frames as frames
from l7proxy.wire.http2_frames import HEAD_SIZE, PREFACE

CONN = Conn("10.0.0.1", 40000, "10.0.0.2", 80, 1001, 1002)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CALM = frames.settings([(4, 1 << 20)]) + frames.window_update(0, (1 << 31) - 1 - 65535)


@dataclass
class Cost:
    ns: int = 0
    size: int = 0
    connections: int = 0
    longest: int = 0
    requests: int = 0

    @property
    def per_byte(self) -> float:
        return self.ns / self.size


class Connection:
    """One client's gate, and the server that answers it."""

    def __init__(self, cost: Cost) -> None:
        policy = PortPolicy(Decision(Verdict.REDIRECTED), (HttpTable(RULES), Decision(Verdict.DROPPED, reason="no")))
        combined = VerdictCache()

        def judge(request: Request) -> PolicyVerdict:
            cost.requests += 1
            return evaluate_l7(None, policy, request, combined)

        self.cost = cost
        clock = Clock(time.time_ns, time.monotonic_ns)
        self.gate: Gate = gate_for(KINDS[HttpRules], judge, CONN, clock, HttpOptions())
        self.over = False
        self.http2 = False
        self.heard = b""
        cost.connections += 1
        self.gate.started()

    def client(self, data: bytes) -> None:
        """One read, and the server's response to it."""
        spent, actions = self._timed(self.gate.from_client, data)
        self.cost.size += len(data)
        heard = self._do(actions)
        while heard and not self.over:
            took, actions = self._timed(self.gate.from_server, heard)
            spent += took
            heard = self._do(actions)
        self.cost.ns += spent
        self.cost.longest = max(self.cost.longest, spent)

    @staticmethod
    def _timed(step: Callable[[bytes], list[Action]], data: bytes) -> tuple[int, list[Action]]:
        before = time.thread_time_ns()
        actions = step(data)
        return time.thread_time_ns() - before, actions

    def _do(self, actions: list[Action]) -> bytes:
        answers: list[bytes] = []
        for action in actions:
            if isinstance(action, SwitchGate):
                self.gate = action.gate
            elif isinstance(action, Connect):
                self.gate.connected()
            elif isinstance(action, ToServer):
                answers.append(self._answers(action.data))
            elif isinstance(action, Close):
                self.over = True
        return b"".join(answers)

    def _answers(self, data: bytes) -> bytes:
        if data.startswith(PREFACE):
            self.http2, data = True, data[len(PREFACE) :]
            return CALM + self._frames(data)
        if self.http2:
            return self._frames(data)
        self.heard = (self.heard + data)[-5:]
        ends = data.endswith(b"\r\n\r\n") or self.heard.endswith(b"\r\n\r\n")
        return ANSWER if ends else b""

    def _frames(self, data: bytes) -> bytes:
        data = self.heard + data
        out: list[bytes] = []
        at, ends = 0, len(data)
        while at + HEAD_SIZE <= ends:
            size = int.from_bytes(data[at : at + 3])
            if at + HEAD_SIZE + size > ends:
                break
            if data[at + 3] in (frames.HEADERS, frames.DATA) and data[at + 4] & frames.END_STREAM:
                number = int.from_bytes(data[at + 5 : at + 9])
                out.append(frames.headers(number, b"\x88", end=True))
            at += HEAD_SIZE + size
        self.heard = data[at:]
        return b"".join(out)


def reads(attack: Attack, cost: Cost) -> Iterator[tuple[Connection, bytes]]:
    while True:
        connection = Connection(cost)
        for data in attack.reads():
            yield connection, data
            if connection.over:
                break


def measured(attack: Attack, seconds: float) -> Cost:
    cost = Cost()
    limit = int(seconds * 1e9)
    for connection, data in reads(attack, cost):
        connection.client(data)
        if cost.ns > limit:
            break
    return cost


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.3
    words = sys.argv[2:]
    print(compiled.word())
    costs = {
        name: measured(attack, seconds)
        for name, attack in ATTACKS.items()
        if attack.ordinary or all(word in name for word in words)
    }
    usual = max(cost.per_byte for name, cost in costs.items() if ATTACKS[name].ordinary)
    print(f"{'':44} {'ns/byte':>8} {'ratio':>7} {'longest':>8} {'us/req':>8}  connections")
    for name, cost in costs.items():
        print(
            f"{name:44} {cost.per_byte:8.0f} {cost.per_byte / usual:7.1f} {cost.longest / 1e6:8.2f} "
            f"{cost.ns / 1e3 / max(1, cost.requests):8.1f} {cost.connections:6}"
        )


if __name__ == "__main__":
    main()
