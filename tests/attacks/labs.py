"""A lab to attack: real pods, the real agent, and an attacker with root and CAP_NET_RAW in a pod.

Arrival is measured at the victim, on its interface or its sockets, never by the product's flows:

    attacker, victim = lab.pod("free"), lab.pod("victim")
    forbidden = token()
    with victim.capture() as seen:
        attacker.send(ethernet(attacker.mac, victim.mac) / internet(a, b) / UDP(sport=1, dport=9000) / forbidden)
        assert not seen.arrived(forbidden)

Give each attack a control: the same packet to a pod that may be reached (`open`) must arrive. Without it a malformed
frame would look like a refused one. cluster.yaml defines the roles of the pods.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from l7proxy.lab import agents, cni_result, lifecycle, netns
from l7proxy.lab import network as lab_network
from l7proxy.lab.cluster import Cluster
from l7proxy.lab.cluster import Pod as ClusterPod
from l7proxy.lab.manifests import parse, read
from l7proxy.lab.settings import Cni, Families, Kernel, Settings
from l7proxy.lab.state import Lab, State
from l7proxy.model.net import family_of
from tests.attacks.packets import Packet, link_local

Result = TypeVar("Result")
Flow = dict[str, Any]

MANIFESTS: Final = Path(__file__).with_name("cluster.yaml")
QUIET: Final = 0.25
"""Seconds without a packet after which no more are expected: a frame crosses a lab in less than a millisecond."""
_ETH_P_ALL: Final = 0x0003
_SO_RCVBUFFORCE: Final = 33
_RECEIVE_BUFFER: Final = 32 << 20
_PACKET_OUTGOING: Final = 4


@dataclass(frozen=True, order=True)
class Combination:
    """One way to build the lab. `dual` means bridge-nf-call is 1 (as kubeadm sets it), else 0."""

    cni: str
    backend: str
    families: str

    def __str__(self) -> str:
        return f"{self.cni}-{self.backend}-{self.families}"

    def settings(self, name: str) -> Settings:
        return Settings(
            name=name,
            cni=Cni(self.cni),
            backend=Kernel(self.backend),
            ip_family=Families(self.families),
            bridge_nf_call=int(self.families == "dual"),
        )

    def fits(self, cni: str = "", backend: str = "", family: int = 0) -> bool:
        """Whether the combination matches; an omitted argument matches any value."""
        return (
            cni in {"", self.cni} and backend in {"", self.backend} and (not family or family in self.address_families)
        )

    @property
    def address_families(self) -> tuple[int, ...]:
        return {"4": (4,), "6": (6,), "dual": (4, 6)}[self.families]


COMBINATIONS: Final = tuple(
    Combination(cni, backend, families)
    for families in ("dual", "4", "6")
    for cni in ("bridge", "ptp")
    for backend in ("nftables", "iptables")
)
PAIRWISE: Final = frozenset(c for c in COMBINATIONS if c.families == "dual") | {Combination("bridge", "nftables", "4")}
"""The combinations of `make test`; `make test-all` runs all."""


@dataclass(frozen=True)
class Place:
    """A network namespace. `addresses` and `mac` are those of `interface`."""

    name: str
    namespace: str
    addresses: dict[int, str]
    mac: str
    interface: str = "eth0"

    def do(self, action: Callable[[], Result]) -> Result:
        """The action's result or exception, from a thread inside the namespace; sockets created there stay there."""
        return netns.inside(self.namespace, action)

    @property
    def link_local(self) -> str:
        """The fe80 address derived from the interface's MAC."""
        return link_local(self.mac)

    # Sending

    def send(self, *frames: Packet | bytes) -> None:
        """Sends raw frames unchanged from the interface."""

        def put() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
                raw.bind((self.interface, 0))
                for frame in frames:
                    raw.send(bytes(frame))

        self.do(put)

    def open_socket(
        self, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0, *, seconds: float = 1.0
    ) -> socket.socket:
        """A socket in this namespace, with a timeout."""
        made = self.do(lambda: socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind, protocol))
        made.settimeout(seconds)
        return made

    def connect(self, address: str, port: int, data: bytes = b"hello\n", *, seconds: float = 1.0) -> str:
        """The first data of a TCP server; or `closed`, `refused`, `reset`, `timeout`, `error: …`."""
        with self.open_socket(family_of(address), seconds=seconds) as client:
            try:
                client.connect(self.scoped(address, port))
                client.sendall(data)
                return client.recv(65536).decode(errors="replace") or "closed"
            except ConnectionRefusedError:
                return "refused"
            except ConnectionResetError:
                return "reset"
            except TimeoutError:
                return "timeout"
            except OSError as error:
                return f"error: {error}"

    def http(
        self, address: str, target: str = "/public", *, method: str = "GET", port: int = 80, seconds: float = 2.0
    ) -> str:
        """The status code of one request on a new connection, or the result of `connect` if there is no connection."""
        host = f"[{address}]" if ":" in address else address
        head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        answer = self.connect(address, port, head.encode(), seconds=seconds)
        return answer.split()[1] if answer.startswith("HTTP/") else answer

    def datagram(self, address: str, port: int, data: bytes = b"hello", *, seconds: float = QUIET) -> bytes | None:
        """The answer of a UDP server, or None without one. An ICMP error raises OSError."""
        with self.open_socket(family_of(address), socket.SOCK_DGRAM, seconds=seconds) as client:
            client.connect(self.scoped(address, port))
            client.send(data)
            try:
                return client.recv(65536)
            except TimeoutError:
                return None

    def ping(self, address: str, *, seconds: float = QUIET) -> bool:
        """Whether an echo request is answered."""
        family = family_of(address)
        protocol, kind = (socket.IPPROTO_ICMP, 8) if family == 4 else (socket.IPPROTO_ICMPV6, 128)
        self.write("net/ipv4/ping_group_range", "0 2147483647")
        with self.open_socket(family, socket.SOCK_DGRAM, protocol, seconds=seconds) as client:
            client.sendto(struct.pack(">BBHHH", kind, 0, 0, 0, 1) + b"hello", self.scoped(address, 0))
            with contextlib.suppress(TimeoutError):
                return bool(client.recv(200))
        return False

    def scoped(self, address: str, port: int) -> tuple[Any, ...]:
        """A socket address; a link-local one is scoped to this interface."""
        if not address.startswith("fe80:"):
            return (address, port)
        return (address, port, 0, self.do(lambda: socket.if_nametoindex(self.interface)))

    def write(self, sysctl: str, value: str | int) -> None:
        """Sets a sysctl of this namespace, such as `net/ipv4/ip_forward`."""
        self.do(lambda: netns.set_sysctl(sysctl, value))

    def sh(self, *lines: str) -> str:
        """The output of commands, which must succeed."""
        return "".join(self.do(lambda line=line: _run(line)) for line in lines)  # type: ignore[misc]

    # Receiving

    @contextlib.contextmanager
    def capture(self) -> Iterator[Capture]:
        """Captures every frame that arrives at the interface."""

        def listen() -> socket.socket:
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            raw.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            raw.bind((self.interface, _ETH_P_ALL))
            return raw

        with self.do(listen) as raw:
            yield Capture(raw)

    @contextlib.contextmanager
    def receiver(self, port: int, family: int, *, kind: int = socket.SOCK_DGRAM) -> Iterator[socket.socket]:
        """A socket bound to a port on every address; it listens if it is TCP."""
        with self.open_socket(family, kind) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("0.0.0.0" if family == 4 else "::", port))
            if kind == socket.SOCK_STREAM:
                made.listen(64)
            yield made


@dataclass(frozen=True)
class Pod(Place):
    """`port` is the node's end of the pod interface; `gateway_mac` is the node's MAC on it."""

    node: str = ""
    port: str = ""
    gateway_mac: str = ""


@dataclass(frozen=True)
class Node(Place):
    """`gateways` are the gateway addresses of its pods."""

    gateways: dict[int, str] = field(default_factory=dict)


@dataclass
class Capture:
    """The frames that arrive at one interface, without those that it sends itself."""

    raw: socket.socket
    frames: list[bytes] = field(default_factory=list)

    def arrived(self, *tokens: bytes, quiet: float = QUIET) -> set[bytes]:
        """The tokens that arrived in some frame. Waits until all have arrived or no more frames come."""
        while not self._carried(tokens) >= {*tokens} and self._receive(quiet):
            pass
        return self._carried(tokens)

    def packets(self, *, quiet: float = QUIET) -> list[bytes]:
        """All frames, once no more come."""
        while self._receive(quiet):
            pass
        return self.frames

    def _carried(self, tokens: tuple[bytes, ...]) -> set[bytes]:
        return {token for token in tokens if any(token in frame for frame in self.frames)}

    def _receive(self, quiet: float) -> bool:
        """Whether one more frame arrives within `quiet` seconds."""
        deadline = time.monotonic() + quiet
        while (left := deadline - time.monotonic()) > 0:
            self.raw.settimeout(left)
            try:
                frame, address = self.raw.recvfrom(1 << 16)
            except TimeoutError:
                return False
            if address[2] != _PACKET_OUTGOING:
                self.frames.append(frame)
                return True
        return False


class AttackLab:
    """One running lab."""

    def __init__(self, name: str, combination: Combination, *, flow_logs: str = "") -> None:
        self.combination = combination
        settings = msgspec.structs.replace(combination.settings(name), flow_logs=flow_logs)
        self.lab: Lab = lifecycle.up(settings, read([MANIFESTS]))
        self._look()

    def _look(self) -> None:
        self._state: State = self.lab.load()
        self._cluster: Cluster = lifecycle.cluster_of(self.lab)

    @property
    def cni(self) -> str:
        return self.combination.cni

    @property
    def backend(self) -> str:
        return self.combination.backend

    @property
    def families(self) -> tuple[int, ...]:
        return self.combination.address_families

    def pod(self, name: str) -> Pod:
        """A pod, by name in namespace `default` or as `namespace/name`."""
        full = name if "/" in name else f"default/{name}"
        box = self._state.pods[full]
        pod = next(pod for pod in self._cluster.pods if str(pod) == full)
        node = self._cluster.node(box.node)
        gateway = lab_network.bridge_mac(node) if self.cni == "bridge" else lab_network.ROUTED_MAC
        mac = netns.inside(box.namespace, _own_mac)
        addresses = {family_of(address): address for address in pod.addresses}
        return Pod(name, box.namespace, addresses, mac, node=box.node, port=box.interface, gateway_mac=gateway)

    def node(self, name: str) -> Node:
        box, node = self._state.nodes[name], self._cluster.node(name)
        gateways = {4: lab_network.GATEWAY_4, 6: lab_network.GATEWAY_6}
        if self.cni == "bridge":
            gateways = {family_of(cidr): str(ip_network(cidr)[1]) for cidr in node.pod_cidrs}
        addresses = {family_of(address): address for address in node.addresses}
        return Node(name, box.namespace, addresses, netns.inside(box.namespace, _own_mac), gateways=gateways)

    def service(self, name: str) -> dict[int, str]:
        """A Service's ClusterIPs."""
        found = next(
            s
            for s in self._cluster.services
            if f"{s.namespace}/{s.name}" == (name if "/" in name else f"default/{name}")
        )
        return {family_of(address): address for address in found.addresses}

    @contextlib.contextmanager
    def plugged(self, name: str, node: str, *, announced: bool = True) -> Iterator[Pod]:
        """A pod as the CNI leaves it, without a Pod object: interface, addresses and (if announced) the CNI result."""
        namespace, _, own = name.partition("/")
        networks = [ip_network(cidr) for cidr in self._cluster.node(node).pod_cidrs]
        pod = ClusterPod(namespace, own, node, tuple(str(network.network_address + 200) for network in networks))
        inside, on, where = self.lab.namespace_name(*name.split("/")), self._state.nodes[node], self._cluster.node(node)
        interface = lab_network.plug_pod(on.namespace, inside, where, pod, self._state.settings)
        result = self.lab.cni_directory(node) / cni_result.file_name(pod)
        addresses = {family_of(address): address for address in pod.addresses}
        gateway = lab_network.bridge_mac(where) if self.cni == "bridge" else lab_network.ROUTED_MAC
        try:
            if announced:
                result.write_text(
                    json.dumps(cni_result.cached(pod, where, interface, self._state.settings.cni, inside))
                )
            yield Pod(
                name,
                inside,
                addresses,
                interface.pod_mac,
                node=node,
                port=interface.host_interface,
                gateway_mac=gateway,
            )
        finally:
            lab_network.unplug_pod(on.namespace, inside, interface.host_interface)
            result.unlink(missing_ok=True)

    # Policy

    def apply(self, manifests: str) -> None:
        """As `kubectl apply`; returns when every node enforces the change."""
        lifecycle.apply(self.lab, parse(manifests, "(the test)"))
        self._look()

    def delete(self, manifests: str) -> None:
        """As `kubectl delete`; returns when every node enforces the change."""
        lifecycle.delete(self.lab, [manifest.key for manifest in parse(manifests, "(the test)")])
        self._look()

    @contextlib.contextmanager
    def applied(self, manifests: str) -> Iterator[None]:
        """Applies objects for a while. New ones are deleted afterwards, those of cluster.yaml are restored."""
        self.apply(manifests)
        try:
            yield
        finally:
            self.delete(manifests)

    # Output of the product

    def status(self, node: str) -> dict[str, Any]:
        """`l7proxy status -o json` of a node."""
        answer = agents.status(self.lab, node)
        assert answer is not None, f"the agent of {node} does not answer"
        return answer

    def flows(self, node: str, since: int = 0, **filters: Any) -> list[Flow]:
        """The flows that a node's agent recorded since a time (time.time_ns()), oldest first. They lag by ≤ 50 ms."""
        question = {"method": "observe", "last": 100_000, "since": since} | filters
        return [
            answer["flow"] for answer in agents.ask(self.lab, node, question) if isinstance(answer.get("flow"), dict)
        ]

    def flow(self, node: str, since: int, matches: Callable[[Flow], bool], *, seconds: float = 6.0) -> Flow | None:
        """The first matching flow, waited for; None when none comes."""
        deadline = time.monotonic() + seconds
        while True:
            if found := next(filter(matches, self.flows(node, since)), None):
                return found
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)

    def down(self) -> None:
        lifecycle.down(self.lab)


def _own_mac() -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        return ":".join(f"{byte:02x}" for byte in raw.getsockname()[4])


def _run(line: str) -> str:
    done = subprocess.run(shlex.split(line), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{line}: {done.stderr or done.stdout}")
    return done.stdout
