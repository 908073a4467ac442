"""A randomised attacker: draws policies, connections, requests and hostile frames from a seed and checks three laws.

    python -m tests.attacks.monkey --seconds 600 --seed 7 --cni ptp --backend iptables

1. Nothing forbidden arrived.  2. Nothing allowed was refused.  3. Every verdict has its flow.

Arrivals are read at the interfaces of all pods and the sockets of both nodes; every item sent carries its own token.
`monkey_policy` defines what may arrive: a model that shares no code with the product. The draws depend on the seed
alone; a run repeats with the same seed, except for thread timing and the connections open at the time.

Steps: a batch of moves under the enforced policies, and a smaller batch while they change (what only one of the two
sets allows may arrive or not). Progress goes to stderr. The exit code is 1 when a law was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import selectors
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from scapy.layers.inet import UDP

from tests.attacks import monkey_policy as model
from tests.attacks.labs import AttackLab, Capture, Combination, Flow, Node, Place, Pod
from tests.attacks.monkey_frames import FRAMES, Limit, Shot
from tests.attacks.monkey_policy import Policies
from tests.attacks.packets import ethernet, internet

TOKEN: Final = re.compile(rb"M[0-9a-f]{15}")
PACKET_HOST, PACKET_BROADCAST, PACKET_MULTICAST = 0, 1, 2
NODE_PORT: Final = 9999
MOVES: Final = 40
PATIENCE: Final = 4.0
QUIET: Final = 0.15


@dataclass
class Outcome:
    """What the sender observed. `client` is the (address, port) of a socket, by which flows are found."""

    said: str = ""
    client: tuple[str, int] | None = None


@dataclass
class Move:
    """One item sent. Only receivers in `may` may get it; one of `must` has to get it, unless `must` is empty."""

    what: str
    source: str
    token: bytes
    may: frozenset[str]
    must: frozenset[str]
    act: Callable[[], Outcome]
    answered: bool = False
    """If some receiver must get it, the sender must also receive its token back, or status 200."""
    owed: str = ""
    """The flow that must record it: `dropped`, `passed`, `request forwarded`, `request dropped`; empty for none."""
    outcome: Outcome = field(default_factory=Outcome)


class Witness:
    """Reads every interface and socket in a thread, and records which receiver got which token."""

    def __init__(self, pods: dict[str, Pod], nodes: dict[str, Node]) -> None:
        self.arrivals: dict[bytes, set[str]] = defaultdict(set)
        self.last = time.monotonic()
        self._stack = contextlib.ExitStack()
        self._selector = self._stack.enter_context(selectors.DefaultSelector())
        self._wake = os.pipe()
        self._selector.register(self._wake[0], selectors.EVENT_READ, None)
        for name, pod in pods.items():
            capture: Capture = self._stack.enter_context(pod.capture())
            capture.raw.setblocking(False)
            self._selector.register(capture.raw, selectors.EVENT_READ, (name, True))
        for name, node in nodes.items():
            for family in node.addresses:
                sock = self._stack.enter_context(node.receiver(NODE_PORT, family))
                sock.setblocking(False)
                self._selector.register(sock, selectors.EVENT_READ, (name, False))
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                with contextlib.suppress(BlockingIOError):
                    self._read(key.fileobj, *key.data)  # type: ignore[arg-type]

    def _read(self, sock: socket.socket, name: str, frames: bool) -> None:
        while True:
            data, address = sock.recvfrom(1 << 16)
            if frames and address[2] not in {PACKET_HOST, PACKET_BROADCAST, PACKET_MULTICAST}:
                continue  # sent by itself, or flooded because the bridge does not know the addressee's port
            for token in TOKEN.findall(data):
                self.arrivals[token].add(name)
                self.last = time.monotonic()

    def close(self) -> None:
        os.write(self._wake[1], b"x")
        self._thread.join()
        self._stack.close()
        for descriptor in self._wake:
            os.close(descriptor)


class World:
    """The lab, its pods and nodes by name, and the model's answers about them."""

    def __init__(self, lab: AttackLab) -> None:
        self.lab = lab
        self.pods = {f"{far}{role}": lab.pod(f"{far}{role}") for role in model.ROLES for far in ("", "far-")}
        self.nodes = {name: lab.node(name) for name in ("node-1", "node-2")}
        self.services = {role: lab.service(role) for role in ("victim", "open")}

    def role(self, name: str) -> str:
        return model.NODE if name in self.nodes else name.removeprefix("far-")

    def next_hop(self, pod: Pod, target: Place) -> str:
        """The MAC to which a pod sends legitimate packets for another."""
        near = isinstance(target, Pod) and target.node == pod.node and self.lab.cni == "bridge"
        return target.mac if near else pod.gateway_mac


@dataclass
class Open:
    """A connection opened in an earlier step and used again under the current policies."""

    kind: str
    source: str
    target: str
    family: int
    sock: socket.socket
    client: tuple[str, int]


class Monkey:
    """Draws moves and checks the results. `faults` are the broken laws, as text."""

    def __init__(self, lab: AttackLab, seed: int, *, progress: bool = False) -> None:
        self.seed, self.random = seed, Random(seed)
        self.world = World(lab)
        self.policies: Policies = ()
        self.faults: list[str] = []
        self.done: Counter[str] = Counter()
        self.step = 0
        self._progress = progress
        self._tokens = 0
        self._open: list[Open] = []

    # The loop

    def run(self, seconds: float, *, keep_going: bool = False) -> None:
        """Runs until the time is up or, unless `keep_going`, a law is broken. Then restores the lab's own policies."""
        deadline = time.monotonic() + seconds
        lab = self.world.lab
        with without_policies(lab), contextlib.ExitStack() as stack:
            self.witness = Witness(self.world.pods, self.world.nodes)
            stack.callback(self.witness.close)
            stack.callback(self._forget_open)
            self.pool = stack.enter_context(ThreadPoolExecutor(max_workers=8, thread_name_prefix="move"))
            try:
                while time.monotonic() < deadline and (keep_going or not self.faults):
                    self._change()
                    self._batch(MOVES, (self.policies,))
            finally:
                if self.policies:
                    lab.delete(model.manifests(self.policies))
                self.policies = ()

    def _change(self) -> None:
        """Applies another set of policies, with traffic during the change."""
        after = {policy.name: policy for policy in self.policies}
        for _ in range(self.random.randrange(1, 4)):
            name = f"monkey-{self.random.randrange(5)}"
            after.pop(name, None)
            if self.random.random() < 0.8:
                after[name] = model.draw(self.random, name)
        before, self.policies = self.policies, tuple(after.values())
        moves = self._draw(MOVES // 4, (before, self.policies))
        failure: list[BaseException] = []

        def apply() -> None:
            try:
                self._apply(before)
            except BaseException as error:  # noqa: BLE001 - raised again by the loop
                failure.append(error)

        changing = threading.Thread(target=apply, name="policy change")
        changing.start()
        self._perform(moves)
        changing.join()
        if failure:
            raise failure[0]
        self._check(moves, flows=False)

    def _apply(self, before: Policies) -> None:
        names = {policy.name for policy in self.policies}
        kinds = {(policy.name, policy.kubernetes) for policy in self.policies}
        gone = [p for p in before if (p.name, p.kubernetes) not in kinds]
        if self.policies and (fresh := [p for p in self.policies if p not in before]):
            self.world.lab.apply(model.manifests(fresh))
        if gone:
            self.world.lab.delete(model.manifests(gone))
        assert names == {policy.name for policy in self.policies}

    def _batch(self, count: int, policies: tuple[Policies, ...]) -> None:
        moves = self._draw(count, policies)
        self._began = time.time_ns()
        self._perform(moves)
        self._check(moves, flows=True)

    # Drawing

    def _draw(self, count: int, policies: tuple[Policies, ...]) -> list[Move]:
        kinds: tuple[tuple[Callable[[tuple[Policies, ...]], Move], int], ...] = (
            (self._frame, 40),
            (self._tcp, 12),
            (self._udp, 12),
            (self._http, 18),
            (self._trick, 6),
            (self._to_node, 6),
            (self._again, 12),
        )
        draws, weights = zip(*kinds, strict=True)
        return [self.random.choices(draws, weights)[0](policies) for _ in range(count)]

    def _token(self) -> bytes:
        self._tokens += 1
        return b"M%05x%010x" % (self.seed & 0xFFFFF, self._tokens)

    def _pair(self) -> tuple[str, str, int]:
        source, target = self.random.sample(list(self.world.pods), 2)
        return source, target, self.random.choice(self.world.lab.families)

    def _allowed(
        self,
        policies: tuple[Policies, ...],
        source: str,
        target: str,
        protocol: str,
        port: int,
        request: tuple[str, str] | None = None,
    ) -> tuple[bool, bool]:
        """(some of the policy sets allow it, all of them allow it)"""
        roles = self.world.role(source), self.world.role(target)
        verdicts = [model.allows(each, *roles, protocol, port, request) for each in policies]
        return any(verdicts), all(verdicts)

    def _judged(self, policies: tuple[Policies, ...], source: str, target: str) -> bool:
        return model.judged(policies[0], self.world.role(source), self.world.role(target))

    def _frame(self, policies: tuple[Policies, ...]) -> Move:
        source, target, family = self._pair()
        build = self.random.choice(FRAMES)
        if self.random.random() < 0.2:
            target = self.random.choice(list(self.world.nodes))
        other = self.random.choice([name for name in self.world.pods if name not in {source, target}])
        places: dict[str, Place] = {**self.world.pods, **self.world.nodes}
        attacker, token = self.world.pods[source], self._token()
        mac = self.world.next_hop(attacker, places[target])
        if self.random.random() < 0.3:
            mac = self.random.choice((attacker.gateway_mac, places[target].mac))
        shot = Shot(self.random, family, attacker, places[target], places[other], mac, token)  # type: ignore[arg-type]
        frames, limit = build(shot)
        raw = [bytes(frame) for frame in frames]
        may = self._may(policies, source, target, limit)
        if build.__name__ == "to_many" and limit is not Limit.NEVER:
            may = frozenset(n for n in places if self._may(policies, source, n, limit))
        honest = build.__name__ == "plain" and mac == self.world.next_hop(attacker, places[target])
        must = may if honest and target in self.world.pods and self._must(policies, source, target) else frozenset()

        def act() -> Outcome:
            attacker.send(*raw)
            return Outcome(" ".join(frame.hex() for frame in raw))

        return Move(f"{build.__name__} {source} > {target} IPv{family}", source, token, may, must, act)

    def _must(self, policies: tuple[Policies, ...], source: str, target: str) -> bool:
        return self._allowed(policies, source, target, "UDP", 9000)[1]

    def _may(self, policies: tuple[Policies, ...], source: str, target: str, limit: Limit) -> frozenset[str]:
        asked = {
            Limit.UDP: ("UDP", 9000),
            Limit.RAW: ("TCP", 9000),
            Limit.WEB: ("TCP", 80),
            Limit.ICMP: ("ICMP", 0),
            Limit.ANY: ("other", 0),
        }
        if limit is Limit.NEVER:
            return frozenset()
        return frozenset({target}) if self._allowed(policies, source, target, *asked[limit])[0] else frozenset()

    def _socket_move(self, policies: tuple[Policies, ...], protocol: str, send: Callable[..., Outcome]) -> Move:
        source, target, family = self._pair()
        receivers, address = [target], self.world.pods[target].addresses[family]
        service = self.world.role(target)
        if service in self.world.services and service != self.world.role(source) and self.random.random() < 0.3:
            receivers, address = [service, f"far-{service}"], self.world.services[service][family]
        token = self._token()
        some, every = self._allowed(policies, source, target, protocol, 9000)
        keep = self.random.random() < 0.2
        owed = ""
        if self._judged(policies, source, target):
            owed = "passed" if every else "dropped"
        return Move(
            f"{protocol} {source} > {address}:9000",
            source,
            token,
            frozenset(receivers) if some else frozenset(),
            frozenset(receivers) if every else frozenset(),
            lambda: send(source, target, family, address, token, keep),
            answered=True,
            owed=owed,
        )

    def _tcp(self, policies: tuple[Policies, ...]) -> Move:
        return self._socket_move(policies, "TCP", self._send_tcp)

    def _udp(self, policies: tuple[Policies, ...]) -> Move:
        return self._socket_move(policies, "UDP", self._send_udp)

    def _send_tcp(self, source: str, target: str, family: int, address: str, token: bytes, keep: bool) -> Outcome:
        sock = self.world.pods[source].open_socket(family, seconds=2)
        return self._converse(sock, Open("TCP", source, target, family, sock, ("", 0)), address, 9000, token, keep)

    def _send_udp(self, source: str, target: str, family: int, address: str, token: bytes, keep: bool) -> Outcome:
        sock = self.world.pods[source].open_socket(family, socket.SOCK_DGRAM, seconds=0.5)
        opened = Open("UDP", source, target, family, sock, ("", 0))
        outcome = self._converse(sock, opened, address, 9000, token, keep)
        if outcome.said != "answered" and not keep:  # one datagram may be lost, two may not
            sock = self.world.pods[source].open_socket(family, socket.SOCK_DGRAM, seconds=1)
            outcome = self._converse(sock, opened, address, 9000, token, keep)
        return outcome

    def _converse(
        self, sock: socket.socket, opened: Open, address: str, port: int, token: bytes, keep: bool
    ) -> Outcome:
        """Connects, sends the token and reads until it is echoed. The socket is kept open or closed."""
        outcome = Outcome()
        try:
            sock.connect((address, port))
            outcome.client = sock.getsockname()[:2]
            sock.sendall(token)
            data = b""
            while token not in data and (more := sock.recv(65536)):
                data += more
            outcome.said = "answered" if token in data else "closed"
        except OSError as error:
            outcome.said = type(error).__name__
            with contextlib.suppress(OSError):
                outcome.client = outcome.client or sock.getsockname()[:2]
        direct = address == self.world.pods[opened.target].addresses[opened.family]
        if keep and direct and outcome.client and outcome.said == "answered":
            self._open.append(replace(opened, client=outcome.client))
        else:
            sock.close()
        return outcome

    def _http(self, policies: tuple[Policies, ...]) -> Move:
        source, target, family = self._pair()
        token, method = self._token(), self.random.choice(("GET", "POST", "GET"))
        prefix = self.random.choice(("/public", "/secret", "/other"))
        path = f"{prefix}/{token.decode()}"
        some, every = self._allowed(policies, source, target, "TCP", 80, (method, path))
        address = self.world.pods[target].addresses[family]
        roles = self.world.role(source), self.world.role(target)
        by_request = all(model.judged_by_request(each, *roles) for each in policies)
        owed = "request forwarded" if by_request and every else ""
        keep = self.random.random() < 0.25
        before = self.random.choice((0, 0, 1, 2))
        receivers = frozenset({target})
        return Move(
            f"HTTP {method} {prefix} {source} > {address}",
            source,
            token,
            receivers if some else frozenset(),
            receivers if every else frozenset(),
            lambda: self._send_http(source, target, family, method, path, keep, before),
            answered=True,
            owed=owed,
        )

    def _send_http(
        self, source: str, target: str, family: int, method: str, path: str, keep: bool, before: int
    ) -> Outcome:
        """One request, after some others (not checked) on the same connection."""
        address = self.world.pods[target].addresses[family]
        sock = self.world.pods[source].open_socket(family, seconds=3)
        outcome = Outcome()
        try:
            sock.connect((address, 80))
            outcome.client = sock.getsockname()[:2]
            status = 0
            for each in ["/warm"] * before + [path]:
                status = ask(sock, method, each)
            outcome.said = "answered" if status == 200 else str(status)
        except OSError as error:
            outcome.said = type(error).__name__
            with contextlib.suppress(OSError):
                outcome.client = outcome.client or sock.getsockname()[:2]
        if keep and outcome.client and outcome.said == "answered":
            self._open.append(Open("HTTP", source, target, family, sock, outcome.client))
        else:
            sock.close()
        return outcome

    def _trick(self, policies: tuple[Policies, ...]) -> Move:
        """A request that two servers could read in two ways. It may arrive only where every request may."""
        source, target, family = self._pair()
        token = self._token()
        build = self.random.choice(TRICKS)
        address = self.world.pods[target].addresses[family]
        data = build(token)
        some = self._allowed(policies, source, target, "TCP", 80, None)[0]

        def act() -> Outcome:
            return Outcome(self.world.pods[source].connect(address, 80, data, seconds=0.5)[:60])

        may = frozenset({target}) if some else frozenset()
        return Move(f"trick {build.__name__} {source} > {address}", source, token, may, frozenset(), act)

    def _to_node(self, policies: tuple[Policies, ...]) -> Move:
        source, _, family = self._pair()
        name = self.random.choice(list(self.world.nodes))
        token = self._token()
        some, every = self._allowed(policies, source, name, "UDP", NODE_PORT)
        node = self.world.nodes[name]
        address = node.addresses[family]
        own = self.world.pods[source].node == name
        if own and self.world.lab.cni == "bridge" and self.random.random() < 0.5:
            address = node.gateways[family]

        def act() -> Outcome:
            sock = self.world.pods[source].open_socket(family, socket.SOCK_DGRAM)
            with sock, contextlib.suppress(OSError):
                sock.sendto(token, (address, NODE_PORT))
            return Outcome("sent")

        may = frozenset({name}) if some else frozenset()
        must = frozenset({name}) if every else frozenset()
        return Move(f"UDP {source} > {name} {address}:{NODE_PORT}", source, token, may, must, act)

    def _again(self, policies: tuple[Policies, ...]) -> Move:
        """Uses a connection of an earlier step, or answers on it as its server."""
        if not self._open:
            return self._udp(policies)
        opened = self._open[self.random.randrange(len(self._open))]
        token, choice = self._token(), self.random.random()
        source, target = opened.source, opened.target
        if opened.kind == "UDP" and choice < 0.5:
            return self._reply(policies, opened, token)
        if opened.kind == "HTTP":
            path = self.random.choice(("/public/", "/secret/")) + token.decode()
            some = self._allowed(policies, source, target, "TCP", 80, ("GET", path))[0]
            data = f"GET {path} HTTP/1.1\r\nHost: again\r\n\r\n".encode()
        elif opened.kind == "UDP":
            some, data = self._exchanges(policies, opened), token
        else:
            some, data = self._allowed(policies, source, target, "TCP", 9000)[0], token

        def act() -> Outcome:
            try:
                opened.sock.sendall(data)
            except OSError as error:
                return Outcome(type(error).__name__, opened.client)
            return Outcome("sent", opened.client)

        may = frozenset({target}) if some else frozenset()
        return Move(f"again {opened.kind} {source} > {target} {opened.client}", source, token, may, frozenset(), act)

    def _exchanges(self, policies: tuple[Policies, ...], opened: Open) -> bool:
        roles = self.world.role(opened.source), self.world.role(opened.target)
        near = self.world.pods[opened.source].node == self.world.pods[opened.target].node
        return any(model.exchanges(each, *roles, opened.client[1], same_node=near) for each in policies)

    def _reply(self, policies: tuple[Policies, ...], opened: Open, token: bytes) -> Move:
        """From the server of a UDP exchange to its client: passes only while the client may send requests."""
        server = self.world.pods[opened.target]
        client = self.world.pods[opened.source]
        some = self._exchanges(policies, opened)
        addresses = server.addresses[opened.family], client.addresses[opened.family]
        link = ethernet(server.mac, self.world.next_hop(server, client))
        frame = bytes(link / internet(*addresses) / UDP(sport=9000, dport=opened.client[1]) / token)

        def act() -> Outcome:
            server.send(frame)
            return Outcome(frame.hex(), opened.client)

        may = frozenset({opened.source}) if some else frozenset()
        what = f"UDP reply {opened.target} > {opened.source} {opened.client}"
        return Move(what, opened.target, token, may, frozenset(), act)

    # Execution and checks

    def _perform(self, moves: list[Move]) -> None:
        def one(move: Move) -> None:
            move.outcome = move.act()

        list(self.pool.map(one, moves))
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and any(self._absent(move) for move in moves):
            time.sleep(0.02)
        while time.monotonic() - self.witness.last < QUIET:
            time.sleep(0.02)

    def _absent(self, move: Move) -> bool:
        return bool(move.must) and not move.must & self.witness.arrivals.get(move.token, set())

    def _check(self, moves: list[Move], *, flows: bool) -> None:
        self.step += 1
        for move in moves:
            arrived = self.witness.arrivals.get(move.token, set()) - {move.source}
            self.done[move.what.split()[0]] += 1
            if extra := arrived - move.may:
                self._fault("forbidden, and arrived", move, f"at {', '.join(sorted(extra))}")
            if self._absent(move):
                self._fault("allowed, and did not arrive", move, f"the sender saw {move.outcome.said}")
            elif move.must and move.answered and move.outcome.said != "answered":
                self._fault("allowed, and not answered", move, f"the sender saw {move.outcome.said}")
        if flows:
            self._check_flows(moves)
        if self._progress and self.step % 10 == 0:
            print(f"step {self.step}: {sum(self.done.values())} moves, {len(self.faults)} faults", file=sys.stderr)

    def _check_flows(self, moves: list[Move]) -> None:
        owed = [move for move in moves if move.owed and move.outcome.client]
        deadline = time.monotonic() + 3
        while True:
            seen = [flow for name in self.world.nodes for flow in self.world.lab.flows(name, self._began)]
            missing = [move for move in owed if not any(tells(flow, move) for flow in seen)]
            if not missing or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        for move in missing:
            self._fault("judged, and no flow tells of it", move, f"owed: {move.owed}; client {move.outcome.client}")

    def _fault(self, law: str, move: Move, detail: str) -> None:
        policies = "\n    ".join(json.dumps(json.loads(policy.manifest())["spec"]) for policy in self.policies)
        self.faults.append(
            f"{law}: {move.what}, {detail}\n"
            f"  seed {self.seed}, step {self.step}, token {move.token.decode()}, may {sorted(move.may)}\n"
            f"  sent: {move.outcome.said}\n  policies:\n    {policies}"
        )
        if self._progress:
            print(self.faults[-1], file=sys.stderr)

    def _forget_open(self) -> None:
        for opened in self._open:
            opened.sock.close()


def tells(flow: Flow, move: Move) -> bool:
    """Whether this is the flow that the move requires."""
    assert move.outcome.client is not None
    layer = flow.get("l4", {}).get("UDP" if move.what.startswith("UDP") else "TCP", {})
    if (flow.get("IP", {}).get("source"), layer.get("source_port")) != move.outcome.client:
        return False
    if not move.owed.startswith("request"):
        return bool((flow["verdict"] == "DROPPED") == (move.owed == "dropped"))
    url = str(flow.get("l7", {}).get("http", {}).get("url", ""))
    return flow["verdict"] == "FORWARDED" and move.token.decode() in url


def ask(sock: socket.socket, method: str, path: str) -> int:
    """The status of one request on a kept-alive connection. OSError when the connection ends."""
    body = "Content-Length: 2\r\n\r\nhi" if method == "POST" else "\r\n"
    sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: monkey\r\n{body}".encode())
    data = b""
    while True:
        head, end, rest = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if end and length and len(rest) >= int(length[1]):
            return int(head.split()[1])
        if not (more := sock.recv(65536)):
            raise ConnectionResetError("closed")
        data += more


# Requests with two readings: only one of the readings contains the token in a request.


def both_lengths(token: bytes) -> bytes:
    inner = b"GET /secret/%b HTTP/1.1\r\nHost: a\r\n\r\n" % token
    head = b"POST /public HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head % (5 + len(inner)) + b"0\r\n\r\n" + inner


def odd_coding(token: bytes) -> bytes:
    inner = b"GET /secret/%b HTTP/1.1\r\nHost: a\r\n\r\n" % token
    return b"POST /public HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + inner


def bare_line_feed(token: bytes) -> bytes:
    return b"GET /public HTTP/1.1\r\nHost: a\nX: GET /secret/%b HTTP/1.1\r\n\r\n" % token


def space_before_colon(token: bytes) -> bytes:
    return b"GET /public/%b HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello" % token


def two_hosts(token: bytes) -> bytes:
    return b"GET /public/%b HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" % token


def no_http(token: bytes) -> bytes:
    return b"SSH-2.0-%b\r\n" % token


def nul_in_header(token: bytes) -> bytes:
    return b"GET /public/%b HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n" % token


TRICKS: Final = (both_lengths, odd_coding, bare_line_feed, space_before_colon, two_hosts, no_http, nul_in_header)


@contextlib.contextmanager
def without_policies(lab: AttackLab) -> Iterator[None]:
    """Removes the lab's own policies for a while."""
    policies = "---\n".join(
        manifest.text for manifest in lab.lab.store.load().values() if manifest.key.kind.endswith("NetworkPolicy")
    )
    lab.delete(policies)
    try:
        yield
    finally:
        lab.apply(policies)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.monkey", description="A randomised attacker.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--cni", choices=["bridge", "ptp"], default="bridge")
    parser.add_argument("--backend", choices=["nftables", "iptables"], default="nftables")
    parser.add_argument("--families", choices=["4", "6", "dual"], default="dual")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first broken law")
    chosen = parser.parse_args()
    combination = Combination(chosen.cni, chosen.backend, chosen.families)
    print(f"monkey: {combination}, seed {chosen.seed}, {chosen.seconds:g} s", file=sys.stderr)
    lab = AttackLab(f"monkey{os.getpid()}", combination)
    try:
        monkey = Monkey(lab, chosen.seed, progress=True)
        monkey.run(chosen.seconds, keep_going=chosen.keep_going)
    finally:
        lab.down()
    moves = sum(monkey.done.values())
    print(f"{moves} moves in {monkey.step} steps, {len(monkey.faults)} laws broken: {dict(monkey.done)}")
    return 1 if monkey.faults else 0


if __name__ == "__main__":
    sys.exit(main())
