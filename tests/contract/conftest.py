"""Real network namespaces with real packets for the backends; nothing is left behind.

A `Namespace` has no name: it lives as long as its file descriptor, so even a killed test run leaves nothing. A thread
enters it to do work there; sockets created there stay there and can be used from anywhere.

    @pytest.mark.pairwise    `make test` runs rows of its product that hold every pair of values, `make test-all` all

Backend and family count as one value, next to backend and topology, so every case runs with each backend on each
kind of link and in each family. Tests without the mark run in full.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import socket
import struct
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from tests.support.pairwise import Row, cover
from tproxy_rules.backend import Backend
from tproxy_rules.desired import Bridge, Desired, Endpoint, Entry, Port, Settings, Table, Verdict
from tproxy_rules.iptables.backend import IptablesBackend
from tproxy_rules.nft.backend import NftablesBackend

Result = TypeVar("Result")

IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
PROXY_PORT = 15001
BACKENDS: dict[str, Callable[[], Backend]] = {"nftables": NftablesBackend, "iptables": IptablesBackend}
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


class Namespace:
    """A network namespace without a name."""

    def __init__(self) -> None:
        self.fd = -1
        self.fd = _in_thread(self._make)
        self.sh("ip link set lo up")

    @staticmethod
    def _make() -> int:
        if _LIBC.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare: no network namespace may be made here")
        return os.open(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        """A path for `ip link set … netns`."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def do(self, action: Callable[[], Result]) -> Result:
        """The action's result, or its exception, run inside the namespace."""

        def enter() -> Result:
            if _LIBC.setns(self.fd, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            return action()

        return _in_thread(enter)

    def sh(self, *lines: str) -> str:
        """The output of commands, which must succeed."""
        out = ""
        for line in lines:
            done = self.do(lambda line=line: subprocess.run(shlex.split(line), capture_output=True, text=True))  # type: ignore[misc]
            if done.returncode:
                raise RuntimeError(f"{line}: {done.stderr or done.stdout}")
            out += done.stdout
        return out

    def feed(self, command: str, text: str) -> str:
        """The output of a command that gets `text` on stdin."""
        done = self.do(lambda: subprocess.run(shlex.split(command), input=text, capture_output=True, text=True))
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr}")
        return done.stdout

    def write(self, path: str, value: str) -> None:
        """A sysctl of this namespace."""

        def put() -> None:
            with open(path, "w", encoding="ascii") as file:  # noqa: PTH123 - the thread's own /proc
                file.write(value)

        self.do(put)

    def socket(self, family: int, kind: int = socket.SOCK_STREAM, proto: int = 0) -> socket.socket:
        made = self.do(lambda: socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind, proto))
        if family == 6 and kind == socket.SOCK_STREAM:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.settimeout(2.0)
        return made

    def close(self) -> None:
        os.close(self.fd)


def _in_thread(action: Callable[[], Result]) -> Result:
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(action())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            failure.append(error)

    thread = threading.Thread(target=run, name="in-namespace")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


@dataclass(frozen=True)
class Pod:
    """A namespace with one interface and an address of each family."""

    name: str
    namespace: Namespace
    addresses: dict[int, str]
    port: Port | None

    def connect(self, address: str, port: int, *, timeout: float = 1.5) -> str:
        """`refused`, `timeout`, `reset`, or the server's first data."""
        family = 6 if ":" in address else 4
        with self.namespace.socket(family) as client:
            client.settimeout(timeout)
            try:
                client.connect((address, port))
                return client.recv(200).decode() or "closed"
            except ConnectionRefusedError:
                return "refused"
            except ConnectionResetError:
                return "reset"
            except TimeoutError:
                return "timeout"
            except OSError as error:
                return f"error: {error}"

    def datagram(self, address: str, port: int, *, timeout: float = 0.5) -> str:
        """The answer of a UDP server, or `silence`."""
        family = 6 if ":" in address else 4
        with self.namespace.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(timeout)
            client.sendto(b"hello", (address, port))
            try:
                return client.recv(200).decode()
            except TimeoutError:
                return "silence"

    def ping(self, address: str, *, timeout: float = 0.7) -> bool:
        """Whether an echo request is answered."""
        family = 6 if ":" in address else 4
        proto, kind = (socket.IPPROTO_ICMP, 8) if family == 4 else (socket.IPPROTO_ICMPV6, 128)
        self.namespace.write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
        with self.namespace.socket(family, socket.SOCK_DGRAM, proto) as client:
            client.settimeout(timeout)
            client.sendto(struct.pack(">BBHHH", kind, 0, 0, 0, 1) + b"hello", (address, 0))
            try:
                return bool(client.recv(200))
            except TimeoutError:
                return False


class Server(threading.Thread):
    """Greets each TCP connection with the client's address, then echoes."""

    def __init__(self, pod_namespace: Namespace, family: int, port: int) -> None:
        super().__init__(name=f"server-{port}", daemon=True)
        self._listener = pod_namespace.socket(family)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("::" if family == 6 else "0.0.0.0", port))
        self._listener.listen(64)
        self._listener.settimeout(None)
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, peer = self._listener.accept()
                threading.Thread(target=self._serve, args=(client, peer[0]), daemon=True).start()

    @staticmethod
    def _serve(client: socket.socket, peer: str) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(30)
            client.sendall(f"hello {peer}".encode())
            while data := client.recv(1000):
                client.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Proxy(threading.Thread):
    """A minimal transparent proxy: connects to the server from the client's address and passes on the greeting."""

    def __init__(self, node: Namespace, family: int, settings: Settings) -> None:
        super().__init__(name="proxy", daemon=True)
        self._node, self._family, self._settings = node, family, settings
        self.seen: list[tuple[str, str, int]] = []
        """(client, original destination, its port)"""
        self.failures: list[str] = []
        self.resolves: dict[str, tuple[str, int]] = {}
        """Service addresses and their backends, as a worker knows them."""
        self._listener = node.socket(family)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        transparent(self._listener, family)
        self._listener.bind(("127.0.0.1" if family == 4 else "::1", dict(settings.listeners)[6]))
        self._listener.listen(64)
        self._listener.settimeout(None)
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, peer = self._listener.accept()
                self._serve(client, peer[0])

    def _serve(self, client: socket.socket, peer: str) -> None:
        with client:
            target, port = client.getsockname()[:2]
            self.seen.append((peer, target, port))
            target, port = self.resolves.get(target, (target, port))
            try:
                with self._node.socket(self._family) as upstream:
                    upstream.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._settings.mark_upstream)
                    transparent(upstream, self._family)
                    upstream.bind((peer, 0))
                    upstream.connect((target, port))
                    client.sendall(b"proxy " + upstream.recv(200))
            except OSError as error:
                self.failures.append(f"{target}:{port}: {error}")

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join(3)


def transparent(made: socket.socket, family: int) -> None:
    if family == 4:
        made.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)


class World:
    """One node, three pods on it (client, server, stranger) and a host outside, connected as a CNI would."""

    def __init__(self, topology: str, backend: str) -> None:
        self.topology = topology
        self.node = Namespace()
        self.backend = BACKENDS[backend]()
        self.bridge = Bridge("cni0", "02:aa:00:00:00:01") if topology.startswith("bridge") else None
        self._closers: list[Callable[[], None]] = [self.node.close]
        self._prepare_node()
        self.client, self.server, self.stranger = (self._pod(name, 11 + i) for i, name in enumerate(PODS))
        self.outside = self._outside()
        for family in (4, 6):
            for port in (80, 8080, 9000):
                self._close_later(Server(self.server.namespace, family, port))
            self._close_later(Server(self.node, family, 7000))
            self._close_later(Server(self.outside.namespace, family, 80))
        self.warm()

    def _close_later(self, closer: Any) -> None:
        self._closers.insert(0, closer.close)

    def _prepare_node(self) -> None:
        self.node.write("/proc/sys/net/ipv4/ip_forward", "1")
        self.node.write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        self.node.write("/proc/sys/net/ipv6/conf/all/accept_dad", "0")
        self.node.write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")
        if self.bridge:
            value = "1" if self.topology == "bridge-nf-1" else "0"
            for name in ("iptables", "ip6tables"):
                self.node.write(f"/proc/sys/net/bridge/bridge-nf-call-{name}", value)
            self.node.sh(
                f"ip link add cni0 address {self.bridge.mac} type bridge",
                "ip link set cni0 up",
                "ip addr add 10.1.0.1/24 dev cni0",
                "ip addr add fd00:1::1/64 dev cni0 nodad",
            )

    def _pod(self, name: str, number: int) -> Pod:
        namespace = Namespace()
        self._close_later(namespace)
        veth, mac = f"veth{name[:8]}", f"02:00:00:00:00:{number:02x}"
        addresses = {4: f"10.1.0.{number}", 6: f"fd00:1::{number:x}"}
        namespace.write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")
        self.node.sh(f"ip link add {veth} type veth peer name eth0 address {mac} netns {namespace.path}")
        self.node.sh(f"ip link set {veth} up")
        namespace.sh("ip link set eth0 up")
        if self.bridge:
            self.node.sh(f"ip link set {veth} master cni0")
            namespace.sh(
                f"ip addr add {addresses[4]}/24 dev eth0",
                f"ip addr add {addresses[6]}/64 dev eth0 nodad",
                "ip route add default via 10.1.0.1",
                "ip -6 route add default via fd00:1::1",
            )
        else:
            self.node.sh(
                f"ip addr add 10.1.0.1/32 dev {veth}",
                f"ip addr add fd00:1::1/128 dev {veth} nodad",
                f"ip route add {addresses[4]}/32 dev {veth}",
                f"ip -6 route add {addresses[6]}/128 dev {veth}",
            )
            namespace.sh(
                f"ip addr add {addresses[4]}/32 dev eth0",
                f"ip addr add {addresses[6]}/128 dev eth0 nodad",
                "ip route add 10.1.0.1/32 dev eth0",
                "ip route add default via 10.1.0.1 dev eth0",
                "ip -6 route add fd00:1::1/128 dev eth0",
                "ip -6 route add default via fd00:1::1 dev eth0",
            )
        return Pod(name, namespace, addresses, Port(veth, mac, "cni0" if self.bridge else ""))

    def _outside(self) -> Pod:
        """A host of another network, which looks like a pod of another node."""
        namespace = Namespace()
        self._close_later(namespace)
        namespace.write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")
        self.node.sh(
            f"ip link add uplink type veth peer name eth0 netns {namespace.path}",
            "ip link set uplink up",
            "ip addr add 10.9.0.1/24 dev uplink",
            "ip addr add fd00:9::1/64 dev uplink nodad",
            "ip route add default via 10.9.0.2",
            "ip -6 route add default via fd00:9::2",
        )
        namespace.sh(
            "ip link set eth0 up",
            "ip addr add 10.9.0.2/24 dev eth0",
            "ip addr add fd00:9::2/64 dev eth0 nodad",
            "ip route add default via 10.9.0.1",
            "ip -6 route add default via fd00:9::1",
        )
        return Pod("outside", namespace, {4: "10.9.0.2", 6: "fd00:9::2"}, None)

    @property
    def pods(self) -> tuple[Pod, ...]:
        return (self.client, self.server, self.stranger)

    @property
    def unserved(self) -> str:
        """What a redirected client sees when no proxy listens: xt_TPROXY drops, nft goes on to the next rule."""
        return "timeout" if self.backend.name == "iptables" else "refused"

    def warm(self) -> None:
        """Fills the neighbour caches before the first measured packet."""
        for pod in (*self.pods, self.outside):
            for family in (4, 6):
                answer = pod.connect(self.node_address(family), 7000)
                if not answer.startswith("hello"):
                    raise RuntimeError(f"{pod.name} does not reach the node over IPv{family}: {answer}")

    def node_address(self, family: int) -> str:
        return "10.1.0.1" if family == 4 else "fd00:1::1"

    def snapshot(self, *, settings: Settings | None = None, **policies: Table | None) -> Desired:
        """Each pod has an interface and an identity; `server_ingress=union(…)` and the like set policies."""
        endpoints = tuple(
            Endpoint(
                index,
                tuple(pod.addresses.values()),
                pod.port,
                ingress=policies.get(f"{pod.name}_ingress"),
                egress=policies.get(f"{pod.name}_egress"),
            )
            for index, pod in enumerate(self.pods, 1)
        )
        hosts = tuple(
            (f"{address}/{32 if family == 4 else 128}", IDENTITY[pod.name])
            for pod in self.pods
            for family, address in pod.addresses.items()
        )
        own = (("10.1.0.1/32", HOST), ("fd00:1::1/128", HOST))
        world = (("0.0.0.0/0", WORLD), ("::/0", WORLD), ("10.9.0.0/24", OUTSIDE), ("fd00:9::/64", OUTSIDE))
        return Desired(
            settings=settings or Settings(nflog_group=78),
            identities=(*hosts, *own, *world),
            endpoints=endpoints,
            bridges=(self.bridge,) if self.bridge else (),
            host_identity=HOST,
        )

    def apply(self, snapshot: Desired) -> None:
        self.node.do(lambda: self.backend.apply(snapshot))

    def close(self) -> None:
        for closer in self._closers:
            closer()


PODS = ("client", "server", "stranger")
HOST, WORLD, OUTSIDE = 1, 2, 0x0100_0009
IDENTITY = {"client": 1001, "server": 1002, "stranger": 70_003}


def entry(
    verdict: Verdict, port: int | range = range(65536), *, protocol: int = 6, peers: tuple[int, ...] | None = None
) -> Entry:
    """A short way to write an entry."""
    first, last = (port, port) if isinstance(port, int) else (port[0], port[-1])
    return Entry(verdict, protocol, first, last, any_peer=peers is None, peers=peers or ())


@pytest.fixture(scope="session")
def sandbox() -> None:
    """Skips, or with CI set fails, where no network namespace can be made."""
    try:
        Namespace().close()
    except (OSError, RuntimeError) as error:
        reason = f"no network namespace can be made here: {error}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)  # before `-m` is evaluated
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    products: dict[object, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("pairwise"):
            products[item.path, item.originalname].append(item)
    for product in products.values():
        kept = cover([_row(item) for item in product])
        for index in {*range(len(product))} - {*kept}:
            product[index].add_marker("full_product")


def _row(item: pytest.Function) -> Row:
    values = dict(item.callspec.params)
    backend = str(values.get("world", values.get("bridged", ""))).partition("/")[0]
    return values | {"backend and family": (backend, values.get("family"))}


WORLDS = [f"{backend}/{topology}" for backend in BACKENDS for topology in ("routed", "bridge-nf-0", "bridge-nf-1")]
BRIDGES = [name for name in WORLDS if "/bridge" in name]
on_bridges = pytest.mark.parametrize("world", BRIDGES, indirect=True)
"""For attacks that routed pods cannot make, because they share no link."""


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest, sandbox: None) -> Iterator[World]:
    backend, _, topology = request.param.partition("/")
    made = World(topology, backend)
    yield made
    made.close()


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)
