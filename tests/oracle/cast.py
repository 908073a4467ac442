"""Who there is in the oracle's cluster: few, and alike enough that most selectors meet somebody."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

SPACES = {"red": {"team": "red", "kubernetes.io/metadata.name": "red"},
          "blue": {"team": "blue", "kubernetes.io/metadata.name": "blue"}}  # fmt: skip
"""Namespace → its labels."""


@dataclass(frozen=True)
class Who:
    """A pod (`space` set), a node (`node` only) or an address outside."""

    name: str
    address: str
    space: str = ""
    node: str = ""
    labels: dict[str, str] = field(default_factory=dict, hash=False, compare=False)
    ports: tuple[tuple[str, str, int], ...] = ()

    @property
    def is_pod(self) -> bool:
        return bool(self.space)

    @property
    def is_outside(self) -> bool:
        return not self.space and not self.node

    def is_host(self) -> bool:
        return not self.space and self.node == "n1"

    def within(self, cidr: str) -> bool:
        return ip_address(self.address) in ip_network(cidr)


HTTP = ("http", "TCP", 80)
PODS = (
    Who("red-a", "10.0.1.10", "red", "n1", {"app": "a", "tier": "x"}, (HTTP, ("alt", "TCP", 8080))),
    Who("red-b", "10.0.1.11", "red", "n1", {"app": "b"}, (("http", "TCP", 8080),)),
    Who("blue-a", "10.0.1.12", "blue", "n1", {"app": "a"}, (HTTP,)),
    Who("red-c", "10.0.2.10", "red", "n2", {"app": "c", "tier": "x"}, (HTTP,)),
    Who("blue-b", "10.0.2.11", "blue", "n2", {"app": "b", "tier": "y"}, (("alt", "UDP", 53),)),
    Who("red-bare", "10.0.2.12", "red", "n2", {}),
)
NODES = (Who("n1", "192.168.0.1", node="n1"), Who("n2", "192.168.0.2", node="n2"))
OUTSIDE = (Who("near", "198.51.100.7"), Who("far", "203.0.113.9"))
EVERYBODY = (*PODS, *NODES, *OUTSIDE)
LOCAL = tuple(pod for pod in PODS if pod.node == "n1")
CIDRS = (
    "0.0.0.0/0",
    "198.51.100.0/24",
    "203.0.113.9/32",
    "10.0.1.0/24",
    "10.0.0.0/8",
    "10.0.2.11/32",
    "192.168.0.0/24",
)
PORTS = (("TCP", 80), ("TCP", 8080), ("TCP", 443), ("UDP", 53), ("UDP", 80), ("SCTP", 80))
