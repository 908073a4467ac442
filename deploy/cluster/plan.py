"""Names, addresses and paths of a cluster. Pure: every other module takes them from here.

Two clusters may have the same addresses: each is in network namespaces of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from l7proxy.errors import ConfigError

Cni = Literal["bridge", "ptp"]
ProxyMode = Literal["nftables", "iptables"]

CLUSTERS: Final = Path("/var/lib/l7proxy-cluster")
"""One directory per cluster. On disk, since it holds the images of every node."""
CONTROL_ADDRESSES: Final = ("172.30.0.1", "fd00:172:30::1")
SERVICE_CIDRS: Final = ("10.96.0.0/16", "fd00:10:96::/112")
POD_CIDRS: Final = ("10.244.0.0/16", "fd00:10:244::/48")
API_SERVICE_ADDRESS: Final = "10.96.0.1"
DNS_ADDRESS: Final = "10.96.0.10"
CLUSTER_DOMAIN: Final = "cluster.local"
API_PORT: Final = 6443
MAX_NODES: Final = 9
_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,11}")


@dataclass(frozen=True, slots=True)
class Machine:
    """The control machine or a node: what it is called and where it is."""

    name: str
    """Its host name, and for a node the name of the Node object."""
    netns: str
    """The network namespace, as `ip netns exec` knows it."""
    cgroup: str
    """The name of its cgroup in each hierarchy."""
    data: Path
    addresses: tuple[str, str]
    """IPv4, IPv6."""
    pod_cidrs: tuple[str, ...] = ()
    """The pods' IPv4 and IPv6 prefixes; none on the control machine."""

    def log(self, program: str) -> Path:
        return self.data / "logs" / f"{program}.log"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What `up` was asked for."""

    name: str
    cni: Cni = "bridge"
    proxy: ProxyMode = "nftables"
    node_count: int = 2

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"--name {self.name}: must be 1 to 12 characters, lower-case letters and digits, a letter first"
            )
        if not 1 <= self.node_count <= MAX_NODES:
            raise ConfigError(f"--nodes {self.node_count}: must be from 1 to {MAX_NODES}")

    @property
    def data(self) -> Path:
        return CLUSTERS / self.name

    @property
    def kubeconfig(self) -> Path:
        """Of the administrator, for programs on the host."""
        return self.data / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.data / "pki"

    @property
    def control(self) -> Machine:
        return self._machine("control", CONTROL_ADDRESSES)

    @property
    def nodes(self) -> tuple[Machine, ...]:
        return tuple(self._node(number) for number in range(1, self.node_count + 1))

    @property
    def machines(self) -> tuple[Machine, ...]:
        return (self.control, *self.nodes)

    def _node(self, number: int) -> Machine:
        addresses = (f"172.30.0.{10 + number}", f"fd00:172:30::{10 + number}")
        pods = (f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64")
        return self._machine(f"node-{number}", addresses, pods)

    def _machine(self, name: str, addresses: tuple[str, str], pods: tuple[str, ...] = ()) -> Machine:
        return Machine(
            name=name,
            netns=f"{self.name}.{name}",
            cgroup=f"l7proxy-cluster.{self.name}.{name}",
            data=self.data / name,
            addresses=addresses,
            pod_cidrs=pods,
        )
