"""The pods, nodes and addresses of the oracle's cluster: few and similar, so that most selectors match something."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

SPACES = {"red": {"team": "red", "kubernetes.io/metadata.name": "red"},
          "blue": {"team": "blue", "kubernetes.io/metadata.name": "blue"}}  # fmt: skip
"""Namespace → its labels."""


@dataclass(frozen=True)
class Who:
    """A pod (`space` set), a node (`node` only), an outsider, or a `stray`: in a pod CIDR, but of no known pod."""

    name: str
    address: str
    space: str = ""
    node: str = ""
    labels: dict[str, str] = field(default_factory=dict, hash=False, compare=False)
    ports: tuple[tuple[str, str, int], ...] = ()
    account: str = "default"
    stray: bool = False

    @property
    def is_pod(self) -> bool:
        return bool(self.space)

    @property
    def is_outside(self) -> bool:
        return not self.space and not self.node and not self.stray

    @property
    def is_node(self) -> bool:
        return not self.space and bool(self.node)

    def is_host(self) -> bool:
        return not self.space and self.node == "n1"

    def within(self, cidr: str) -> bool:
        return ip_address(self.address) in ip_network(cidr)


HTTP = ("http", "TCP", 80)
PODS = (
    Who("red-a", "10.0.1.10", "red", "n1", {"app": "a", "tier": "x"}, (HTTP, ("alt", "TCP", 8080))),
    Who("red-b", "10.0.1.11", "red", "n1", {"app": "b"}, (("http", "TCP", 8080),), "ci"),
    Who("blue-a", "10.0.1.12", "blue", "n1", {"app": "a"}, (HTTP,)),
    Who("red-c", "10.0.2.10", "red", "n2", {"app": "c", "tier": "x"}, (HTTP,)),
    Who("blue-b", "10.0.2.11", "blue", "n2", {"app": "b", "tier": "y"}, (("alt", "UDP", 53),), "ci"),
    Who("red-bare", "10.0.2.12", "red", "n2", {}),
)
NODES = (
    Who("n1", "192.168.0.1", node="n1", labels={"zone": "a"}),
    Who("n2", "192.168.0.2", node="n2", labels={"zone": "b"}),
)
OUTSIDE = (Who("near", "198.51.100.7"), Who("far", "203.0.113.9"))
STRAYS = (Who("stray", "10.0.2.99", stray=True),)
EVERYBODY = (*PODS, *NODES, *OUTSIDE, *STRAYS)
API_SERVER = "n2"
LOCAL = tuple(pod for pod in PODS if pod.node == "n1")
CIDRS = (
    "0.0.0.0/0",
    "198.51.100.0/24",
    "203.0.113.9/32",
    "10.0.1.0/24",
    "10.0.0.0/8",
    "10.0.2.11/32",
    "10.0.2.64/26",
    "192.168.0.0/24",
)
PORTS = (
    ("TCP", 80), ("TCP", 80), ("TCP", 8080), ("TCP", 443), ("UDP", 53), ("UDP", 80), ("SCTP", 80),
    ("ICMP", 8 << 8), ("ICMP", 13 << 8 | 1), ("GRE", 0),
)  # fmt: skip
"""For ICMP the number is type · 256 + code."""
WITH_PORTS = ("TCP", "UDP", "SCTP")


@dataclass(frozen=True)
class Service:
    """`parts`: the backends and their ports; `selector`: the pods that Cilium selects for it."""

    space: str
    name: str
    labels: dict[str, str]
    selector: dict[str, str]
    parts: tuple[tuple[tuple[str, ...], tuple[tuple[str, int], ...]], ...]


@dataclass(frozen=True)
class Nets:
    """Prefixes with a name and labels: a CIDR group, or a network set (a global one has no namespace)."""

    name: str
    prefixes: tuple[str, ...]
    labels: dict[str, str]
    space: str = ""


ACCOUNTS = {("red", "ci"): {"role": "a"}, ("blue", "ci"): {"role": "b"}}
"""(namespace, name) → labels."""
SERVICES = (
    Service("red", "web", {"app": "a"}, {"app": "a"}, ((("10.0.1.10",), (("TCP", 80),)),)),
    Service("blue", "out", {"app": "b"}, {}, ((("198.51.100.7",), (("TCP", 443), ("UDP", 53))),)),
    Service(
        "red",
        "mixed",
        {"app": "b"},
        {},
        ((("10.0.2.11", "10.0.2.99"), (("UDP", 53),)), (("203.0.113.9",), (("TCP", 8080),)), ((), (("TCP", 80),))),
    ),
)
GROUPS = (
    Nets("near", ("198.51.100.0/24",), {"app": "a"}),
    Nets("wide", ("203.0.113.0/24", "10.0.2.0/24"), {"app": "b"}),
)
SETS = (
    Nets("set", ("198.51.100.0/24", "10.0.2.10/32"), {"app": "a"}, "red"),
    Nets("set", ("192.168.0.2/32",), {"app": "b", "tier": "x"}, "blue"),
    Nets("set", ("203.0.113.0/24",), {"app": "c"}),
)
TIERS = {"early": (500.0, False), "between": (5000.0, True), "last": (2e6, False)}
"""Name → (order, whether undecided traffic passes to the next tier)."""
