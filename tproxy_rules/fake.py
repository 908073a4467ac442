"""A backend without a kernel: keeps the state in memory and evaluates packets by the semantics of `desired`.

It runs the same checks as the real backends. Objects that share a `FakeKernel` share its state, which tests can damage.
`verdict_of` follows the semantics of `desired`, not the rules of the other backends, so that it can verify them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address, ip_network

from tproxy_rules.backend import Installed, KernelError, Suppressed
from tproxy_rules.desired import Desired, Endpoint, Entry, Stage, Table, Verdict
from tproxy_rules.digest import digest
from tproxy_rules.validate import WITH_PORTS, checked


class Fate(Enum):
    """The outcome for a packet."""

    PASS = "pass"
    STEER = "steer"
    REFUSE = "refuse"
    SPOOFED = "spoofed"


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet of the original direction. `interface` is the port it enters by (the bridge port, if there is a bridge);
    "" is the node itself. `mac` is its source MAC."""

    source: str
    destination: str
    protocol: int = 6
    port: int = 0
    interface: str = ""
    mac: str = ""


@dataclass(slots=True)
class FakeKernel:
    """State that outlives a backend object."""

    desired: Desired | None = None
    intact: bool = True


class FakeBackend:
    """`Backend` in memory."""

    name = "fake"
    steers_before_dnat = False

    def __init__(self, kernel: FakeKernel | None = None, *, fails: str = "") -> None:
        self.kernel = kernel or FakeKernel()
        self.applied = 0
        """Number of applied states that changed something."""
        self.fails = fails
        """If set, every operation fails with this message."""

    def check(self) -> None:
        if self.fails:
            raise KernelError(self.fails)

    def suppressed(self) -> Mapping[Suppressed, int]:
        return {}

    def read(self) -> Installed | None:
        if self.kernel.desired is None:
            return None
        return Installed(digest(self.kernel.desired), self.kernel.intact)

    def apply(self, desired: Desired) -> None:
        self.check()
        desired = checked(desired)
        if desired != self.kernel.desired or not self.kernel.intact:
            self.kernel.desired, self.kernel.intact = desired, True
            self.applied += 1

    def alarm(self) -> None:
        """The fake has no change notifications."""

    def remove(self) -> None:
        self.check()
        self.kernel.desired, self.kernel.intact = None, True

    def damage(self) -> None:
        """Simulate another program that deletes one of our rules."""
        self.kernel.intact = False

    def verdict_of(self, packet: Packet) -> Fate:
        """The semantics of `desired`, step by step."""
        snapshot = self.kernel.desired
        if snapshot is None:
            return Fate.PASS
        here = {address: endpoint for endpoint in snapshot.endpoints for address in endpoint.addresses}
        source, target = here.get(packet.source), here.get(packet.destination)
        if _spoofed(snapshot, packet, source):
            return Fate.SPOOFED
        if source and source is target:
            return Fate.PASS
        if packet.interface and any(_is_held(snapshot, one) for one in (packet.source, packet.destination)):
            return Fate.REFUSE
        asked: list[tuple[Table, int]] = []
        if source and source.egress and packet.interface:
            asked.append((source.egress, _identity(snapshot, packet.destination)))
        if target and target.ingress:
            who = _identity(snapshot, packet.source) if packet.interface else snapshot.host_identity
            asked.append((target.ingress, who))
        verdicts = [_ask(table, identity, packet) for table, identity in asked]
        if Verdict.DENY in verdicts:
            return Fate.REFUSE
        if Verdict.STEER in verdicts:
            return Fate.STEER if packet.protocol in snapshot.settings.redirected else Fate.REFUSE
        return Fate.PASS


def _spoofed(snapshot: Desired, packet: Packet, source: Endpoint | None) -> bool:
    if not packet.interface:
        return False
    if source and source.port:
        right_mac = not source.port.bridge or packet.mac == source.port.mac
        return packet.interface != source.port.interface or not right_mac
    return any(one.port and one.port.interface == packet.interface for one in snapshot.endpoints)


def _is_held(snapshot: Desired, address: str) -> bool:
    """Whether it is in a prefix of this node's pods, without an identity of its own."""
    parsed = ip_address(address)
    singly = {prefix.partition("/")[0] for prefix, _ in snapshot.identities if prefix.endswith(("/32", "/128"))}
    return address not in singly and any(parsed in ip_network(prefix) for prefix in snapshot.held)


def _identity(snapshot: Desired, address: str) -> int:
    parsed = ip_address(address)
    found = [(ip_network(prefix), number) for prefix, number in snapshot.identities]
    holding = [(net.prefixlen, number) for net, number in found if net.version == parsed.version and parsed in net]
    return max(holding, default=(0, 0))[1]


def _ask(table: Table, identity: int, packet: Packet) -> Verdict:
    """DENY, STEER or ALLOW after all tiers."""
    for tier in table.tiers:
        found = next((one for stage in tier.stages if (one := _strongest(stage, identity, packet)) is not None), None)
        if found is None and tier.closed:
            return Verdict.DENY
        if found not in (None, Verdict.PASS):
            return found
    return Verdict.ALLOW


def _strongest(stage: Stage, identity: int, packet: Packet) -> Verdict | None:
    return max((entry.verdict for entry in stage if _covers(entry, identity, packet)), default=None)


def _covers(entry: Entry, identity: int, packet: Packet) -> bool:
    if not entry.any_peer and identity not in entry.peers:
        return False
    if entry.protocol == -1:
        return True
    if entry.protocol != packet.protocol:
        return False
    return entry.protocol not in WITH_PORTS or entry.first <= packet.port <= entry.last
