"""Cost of a packet's path through a node with 10 and with 100 000 policy entries, and with a linear chain of rules.

Three namespaces: a client, a forwarding node, a server. The node has our real nftables rules with the server as an
endpoint (or, for comparison, an iptables chain with one rule per entry); the client sends UDP packets that an entry in
the middle allows. Before and after, a check proves that allowed packets arrive and others do not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from bench.packets import Sender
from l7proxy.lab import netns
from tproxy_rules.desired import Desired, Endpoint, Entry, Verdict, union
from tproxy_rules.nft.backend import NftablesBackend

PREFIX: Final = "l7bench"
CLIENT, NODE, SERVER = (f"{PREFIX}-{name}" for name in ("client", "node", "server"))
CLIENT_ADDRESS, SERVER_ADDRESS = "10.9.1.2", "10.9.2.2"
PORT, REFUSED_PORT = 5000, 7
CLIENT_IDENTITY: Final = 5_000
PORTS_PER_PEER: Final = 50


@dataclass(frozen=True, slots=True)
class Ground:
    """The three connected namespaces."""

    def on_node(self, *command: str, text: str = "") -> None:
        def run() -> None:
            done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(command[:3])}: {done.stderr.strip()[:300]}")

        netns.inside(NODE, run)

    def ns_per_packet(self, seconds: float, core: int) -> float:
        """One core sends, after a check that allowed packets arrive and others do not."""
        if (self.arrives(PORT), self.arrives(REFUSED_PORT)) != (True, False):
            raise SystemExit("the node does not judge packets as it should")

        def send() -> float:
            os.sched_setaffinity(0, {core})  # only for this thread, which ends with the measurement
            sender = Sender((SERVER_ADDRESS, PORT))
            try:
                return sender.ns_per_packet(seconds)
            finally:
                sender.close()

        with netns.inside(SERVER, partial(_bound, PORT)):  # not read: when its buffer is full, packets are dropped
            return netns.inside(CLIENT, send)

    def arrives(self, port: int) -> bool:
        """True when a datagram to the server gets there."""
        with netns.inside(SERVER, partial(_bound, port)) as server, netns.inside(CLIENT, _unbound) as client:
            client.sendto(b"?", (SERVER_ADDRESS, port))
            with contextlib.suppress(TimeoutError):
                return server.recv(64) == b"?"
        return False


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    """Creates the namespaces and always removes them at the end. Leftovers of a killed run are removed first."""
    if shutil.which("ip") is None:
        raise SystemExit("ip is not installed (package iproute2)")
    _clear()
    try:
        for name in (CLIENT, NODE, SERVER):
            netns.create(name)
            _ip(name, "link set lo up")
        _ip(NODE, f"link add near type veth peer name eth0 netns {CLIENT}")
        _ip(NODE, f"link add far type veth peer name eth0 netns {SERVER}")
        for name, link, address in (
            (CLIENT, "eth0", f"{CLIENT_ADDRESS}/24"),
            (NODE, "near", "10.9.1.1/24"),
            (NODE, "far", "10.9.2.1/24"),
            (SERVER, "eth0", f"{SERVER_ADDRESS}/24"),
        ):
            _ip(name, f"addr add {address} dev {link}")
            _ip(name, f"link set {link} up")
        _ip(CLIENT, "route add default via 10.9.1.1")
        _ip(SERVER, "route add default via 10.9.2.1")
        netns.inside(NODE, lambda: netns.set_sysctl("net/ipv4/ip_forward", 1))
        yield Ground()
    finally:
        _clear()


def snapshot(entries: int) -> Desired:
    """Identities × ports; one entry is the client's. Every identity has an address."""
    peers = max(1, entries // PORTS_PER_PEER)
    ports = entries // peers
    numbers = tuple(sorted({CLIENT_IDENTITY, *(10_000 + number for number in range(peers - 1))}))
    first = PORT - ports // 2
    table = union(
        Entry(Verdict.ALLOW, 17, port, port, any_peer=False, peers=numbers) for port in range(first, first + ports)
    )
    addresses = [
        (f"10.{20 + n // 65536}.{n // 256 % 256}.{n % 256}/32", number) for n, number in enumerate(numbers[1:])
    ]
    identities = (("0.0.0.0/0", 2), (f"{CLIENT_ADDRESS}/32", CLIENT_IDENTITY), *addresses)
    return Desired(identities=tuple(sorted(identities)), endpoints=(Endpoint(1, (SERVER_ADDRESS,), ingress=table),))


def in_force(place: Ground, entries: int) -> float:
    """Applies our rules on the node and returns the seconds needed."""
    start = time.monotonic()
    netns.inside(NODE, lambda: NftablesBackend().apply(snapshot(entries)))
    return time.monotonic() - start


def without_ours() -> None:
    netns.inside(NODE, NftablesBackend().remove)


def linear(place: Ground, rules: int) -> None:
    """The same policy as a chain of iptables rules, one per entry, with the client's in the middle."""
    lines = ["*filter", ":FORWARD DROP [0:0]", "-A FORWARD -m conntrack --ctdir REPLY -j ACCEPT"]
    for number in range(rules):
        source = (
            CLIENT_ADDRESS
            if number == rules // 2
            else f"10.{20 + number // 65536}.{number // 256 % 256}.{number % 256}"
        )
        lines.append(f"-A FORWARD -s {source}/32 -p udp -m udp --dport {PORT} -j ACCEPT")
    place.on_node("iptables-restore", text="\n".join([*lines, "COMMIT", ""]))


def without_linear(place: Ground) -> None:
    place.on_node("iptables-restore", text="*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n")


def _address(number: int) -> str:
    return f"10.{20 + number // 65536}.{number // 256 % 256}.{number % 256}"


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", port))
    sock.settimeout(0.5)
    return sock


def _unbound() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _ip(namespace: str, command: str) -> None:
    run: Callable[[], object] = partial(subprocess.run, ["ip", *command.split()], check=True)
    netns.inside(namespace, run)


def _clear() -> None:
    for name in (CLIENT, NODE, SERVER):
        if netns.path_of(name).exists():
            netns.remove(name)
