"""What every backend guarantees, whatever the rules: the same state after every history, and nothing left at the end.

The state is what the kernel's own tools list. The fake has the same guarantees, with its desired state as the listing.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import pytest

from tests.contract.conftest import BACKENDS, IDENTITY, Namespace, World, entry
from tproxy_rules.backend import Backend, Installed, KernelError
from tproxy_rules.desired import (
    MAX_TIERS,
    Bridge,
    Desired,
    Endpoint,
    Frontend,
    Port,
    Settings,
    Table,
    Tier,
    Verdict,
    union,
)
from tproxy_rules.digest import digest
from tproxy_rules.fake import FakeBackend, FakeKernel

Result = TypeVar("Result")
ALLOW, STEER, DENY, PASS = Verdict.ALLOW, Verdict.STEER, Verdict.DENY, Verdict.PASS

_ONE = Endpoint(1, ("10.1.0.11", "fd00:1::b"), Port("veth1"), ingress=union((entry(ALLOW, 80),)))
_RICH = union(
    (
        entry(DENY, protocol=-1, peers=(66,)),
        entry(STEER, 80, peers=(7, 8)),
        entry(STEER, 8080),
        entry(ALLOW, range(9000, 9100), peers=(7,)),
        entry(ALLOW, 53, protocol=17),
        entry(ALLOW, protocol=1),
    )
)
_NETS = (("0.0.0.0/0", 2), ("::/0", 2), ("10.0.0.0/8", 7), ("10.2.0.0/16", 8), ("10.2.0.1/32", 66), ("fd00::/8", 7))
_TWO = Endpoint(2, ("10.1.0.12", "fd00:1::c"), Port("veth2"), ingress=_RICH, egress=_RICH)
_FRONTENDS = (Frontend("10.96.0.9", 6, 80, steer=True), Frontend("fd00:96::9", 6, 80, steer=False))

SNAPSHOTS = {
    "empty": Desired(),
    "one": Desired(identities=_NETS, endpoints=(_ONE,)),
    "rich": Desired(identities=_NETS, endpoints=(_ONE, _TWO), frontends=_FRONTENDS),
    "bridged": Desired(
        identities=_NETS,
        endpoints=tuple(
            replace(one, port=Port(f"veth{one.id}", f"02:00:00:00:00:0{one.id}", "cni0")) for one in (_ONE, _TWO)
        ),
        bridges=(Bridge("cni0", "02:aa:00:00:00:01"),),
    ),
    "moved": Desired(
        settings=Settings(
            listeners=((6, 15002), (17, 15053)),
            mark_proxy=0x100,
            mark_upstream=0x200,
            route_table=7778,
            rule_priority=90,
            nflog_group=79,
            refuse_with_reset=False,
        ),
        identities=_NETS,
        endpoints=(_TWO,),
    ),
    "v4only": Desired(settings=Settings(families=(4,)), identities=_NETS, endpoints=(_TWO,)),
}


class Kernel:
    """A separate kernel state, and a way to inspect it without the backend."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._make = BACKENDS[name]
        self.namespace = Namespace()
        self.namespace.sh("ip link add cni0 address 02:aa:00:00:00:01 type bridge")

    def fresh(self) -> Backend:
        """A backend without memory, as in a restarted process."""
        return self._make()

    def do(self, action: Callable[[], Result]) -> Result:
        return self.namespace.do(action)

    def apply(self, snapshot: Desired) -> None:
        self.do(lambda: self.fresh().apply(snapshot))

    def read(self) -> Installed | None:
        return self.do(lambda: self.fresh().read())

    def remove(self) -> None:
        self.do(lambda: self.fresh().remove())

    def listing(self) -> list[str]:
        """All rules, sets and routes, line by line; each line includes its location."""
        return [*self._nft(), *self._xtables(), *self._ipsets(), *self._routing()]

    def handles(self) -> str:
        """With the handles that the kernel assigned: a recreated object looks different."""
        return self.namespace.sh("nft -a list ruleset", "ipset save")

    def _nft(self) -> Iterator[str]:
        for line in sorted(self.namespace.sh("nft list tables").splitlines()):
            _, family, name = line.split()
            if (family, name) not in _XTABLES:
                yield f"nft {line}"
                yield from sorted(f"nft {line}: {one}" for one in _blocks(self.namespace.sh(f"nft list {line}")))

    def _xtables(self) -> Iterator[str]:
        """Chains and rules, without the built-in chains, because listing creates them."""
        for tool in ("iptables-save", "ip6tables-save", "ebtables-save"):
            table, rules, chains = "", [], []
            for line in self.namespace.sh(tool).splitlines():
                if line.startswith("*"):
                    table = line
                elif line.startswith(":") and line.split()[0][1:] not in _BUILT_IN:
                    chains.append(f"{tool} {table} {line.split()[0]}")
                elif line.startswith("-A"):
                    rules.append(f"{tool} {table} {line}")
            yield from sorted(chains)
            # The order of chains is iptables', that of rules in a chain is ours.
            yield from sorted(rules, key=lambda rule: rule.split()[1:4])

    def _ipsets(self) -> list[str]:
        """Without fields that differ between two equal sets."""
        saved = self.namespace.sh("ipset save").splitlines()
        return sorted(re.sub(r" initval \S+| hashsize \d+| bucketsize \d+", "", line) for line in saved)

    def _routing(self) -> Iterator[str]:
        for version in ("-4", "-6"):
            yield from (f"rule {version} {line}" for line in self.namespace.sh(f"ip {version} rule").splitlines())
            routes = self.namespace.sh(f"ip {version} route show table all").splitlines()
            yield from sorted(f"route {version} {line}" for line in routes)

    def close(self) -> None:
        self.namespace.close()


_XTABLES = {(family, name) for family in ("ip", "ip6", "bridge") for name in ("raw", "mangle", "nat", "filter")}
_BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


def _blocks(listing: str) -> Iterator[str]:
    """Sets, chains and the like. Their order is ignored, and that of a set's members."""
    for block in re.findall(r"^\t\S.*?\{$.*?^\t\}$", listing, re.MULTILINE | re.DOTALL):
        yield re.sub(r"elements = \{([^}]*)\}", lambda found: _sorted(found[1]), block)


def _sorted(members: str) -> str:
    return ", ".join(sorted(member.strip() for member in members.split(",")))


class FakeNode(Kernel):
    """The same for the fake, which needs no namespace."""

    def __init__(self) -> None:
        self.name, self.kernel, self.applied = "fake", FakeKernel(), 0

    def fresh(self) -> Backend:
        return FakeBackend(self.kernel)

    def do(self, action: Callable[[], Result]) -> Result:
        return action()

    def listing(self) -> list[str]:
        return [repr(self.kernel.desired)] if self.kernel.desired else []

    def handles(self) -> str:
        return str(id(self.kernel.desired))

    def close(self) -> None: ...


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Kernel]]:
    made: list[Kernel] = []

    def one(name: str) -> Kernel:
        if name != "fake":
            request.getfixturevalue("sandbox")
        made.append(FakeNode() if name == "fake" else Kernel(name))
        return made[-1]

    yield one
    for kernel in made:
        kernel.close()


REAL = [pytest.param(name, marks=pytest.mark.sandbox) for name in BACKENDS]


@pytest.fixture(params=["fake", *REAL])
def kernel(request: pytest.FixtureRequest, make: Callable[[str], Kernel]) -> Kernel:
    return make(request.param)


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest, make: Callable[[str], Kernel]) -> Kernel:
    return make(request.param)


@pytest.mark.parametrize("last", SNAPSHOTS)
def test_any_snapshot_may_follow_any_other(kernel: Kernel, make: Callable[[str], Kernel], last: str) -> None:
    """The result is what the last apply alone would make."""
    clean = make(kernel.name)
    clean.apply(SNAPSHOTS[last])
    wanted = clean.listing()
    for before in SNAPSHOTS:
        kernel.apply(SNAPSHOTS[before])
        kernel.apply(SNAPSHOTS[last])
        assert kernel.listing() == wanted, f"{last} after {before}"
        assert kernel.read() == Installed(digest(SNAPSHOTS[last]), intact=True), f"{last} after {before}"


@pytest.mark.parametrize("name", ["rich", "bridged"])
def test_the_same_snapshot_again_changes_nothing(kernel: Kernel, name: str) -> None:
    snapshot = SNAPSHOTS[name]
    kernel.apply(snapshot)
    before = kernel.handles()
    kernel.apply(snapshot)
    kernel.apply(replace(snapshot, identities=tuple(snapshot.identities)[::-1], endpoints=snapshot.endpoints[::-1]))
    assert kernel.handles() == before


def test_a_restarted_process_knows_what_is_in_force(kernel: Kernel) -> None:
    assert kernel.read() is None
    for snapshot in SNAPSHOTS.values():
        kernel.apply(snapshot)
        assert kernel.read() == Installed(digest(snapshot), intact=True)


def test_remove_leaves_no_trace_and_may_be_repeated(kernel: Kernel) -> None:
    before = kernel.listing()
    kernel.remove()
    assert kernel.listing() == before, "nothing to remove"
    for name in ("rich", "bridged", "moved"):
        kernel.apply(SNAPSHOTS[name])
        assert kernel.listing() != before
        kernel.remove()
        assert kernel.listing() == before, name
        assert kernel.read() is None
        kernel.remove()
        assert kernel.listing() == before


_FOREIGN_NFT = """
table inet kube {
    set s {
        type ipv4_addr
        elements = { 10.0.0.1 }
    }
    chain l7proxy {
        ip saddr @s accept
    }
    chain pre {
        type filter hook prerouting priority -300; policy accept;
        jump l7proxy
    }
}
table ip l7proxy {
    chain c {
        accept
    }
}
"""
_FOREIGN = (
    "iptables -t mangle -N KUBE",
    "iptables -t mangle -A KUBE -j RETURN",
    "iptables -t mangle -A PREROUTING -j KUBE",
    "ip6tables -t filter -A FORWARD -s fd00::/8 -j ACCEPT",
    "ebtables -t nat -A PREROUTING -p ARP -j ACCEPT",
    "ipset create l7p-foreign hash:ip",
    "ipset add l7p-foreign 10.0.0.1",
    "ip rule add fwmark 0x1/0x1 lookup 7777 priority 101",
    "ip route add local 192.0.2.0/24 dev lo table 7777",
    "ip -6 rule add from fd00:5::/64 lookup 99 priority 98",
)


@pytest.mark.parametrize("name", ["rich", "bridged"])
def test_what_is_not_ours_stays(real: Kernel, name: str) -> None:
    real.namespace.feed("nft -f -", _FOREIGN_NFT)
    real.namespace.sh(*_FOREIGN)
    before = real.listing()
    real.apply(SNAPSHOTS[name])
    assert set(before) <= set(real.listing())
    real.apply(SNAPSHOTS["moved"])
    assert set(before) <= set(real.listing())
    real.remove()
    assert real.listing() == before


def test_as_many_tiers_as_may_be_can_be_nested(real: Kernel) -> None:
    """In every direction and family, with a refusal as the last rule."""
    peers, ports = (7,), range(80, 90)
    tier = Tier(((entry(PASS, ports, peers=peers),), (entry(DENY, 91), entry(STEER, 92, peers=peers))), closed=False)
    deep = Table((*(tier,) * (MAX_TIERS - 1), Tier(((entry(STEER, 80),),), closed=True)))
    endpoints = (replace(one, ingress=deep, egress=deep) for one in SNAPSHOTS["bridged"].endpoints)
    snapshot = replace(SNAPSHOTS["bridged"], endpoints=tuple(endpoints))
    real.apply(snapshot)
    assert real.read() == Installed(digest(snapshot), intact=True)


_BAD = {
    "SCTP cannot be steered": replace(
        SNAPSHOTS["one"], endpoints=(replace(_ONE, ingress=union((entry(STEER, 53, protocol=132),))),)
    ),
    "a name that would end the string": replace(
        SNAPSHOTS["one"], endpoints=(replace(_ONE, port=Port('x" accept; #')),)
    ),
    "a prefix with host bits": replace(SNAPSHOTS["one"], identities=(("10.0.0.1/8", 7),)),
    "two bits in a mark": replace(SNAPSHOTS["one"], settings=Settings(mark_proxy=3)),
    "an unknown bridge": replace(
        SNAPSHOTS["one"], endpoints=(replace(_ONE, port=Port("v", "02:00:00:00:00:01", "br9")),)
    ),
}


@pytest.mark.parametrize("name", _BAD)
def test_a_bad_snapshot_leaves_the_old_one_in_force(kernel: Kernel, name: str) -> None:
    kernel.apply(SNAPSHOTS["rich"])
    before = kernel.listing()
    with pytest.raises(KernelError, match="invalid desired state: "):
        kernel.apply(_BAD[name])
    assert kernel.listing() == before
    assert kernel.read() == Installed(digest(SNAPSHOTS["rich"]), intact=True)


def test_what_the_kernel_refuses_leaves_the_old_snapshot_in_force(real: Kernel) -> None:
    """A foreign route occupies the place that ours needs."""
    real.apply(SNAPSHOTS["rich"])
    real.namespace.sh("ip route add local default dev lo table 7778")
    before = [line for line in real.listing() if not line.startswith("rule") and not line.startswith("route")]
    with pytest.raises(KernelError, match="ip route add local default dev lo table 7778"):
        real.apply(SNAPSHOTS["moved"])
    after = [line for line in real.listing() if not line.startswith("rule") and not line.startswith("route")]
    assert after == before
    real.namespace.sh("ip route del local default dev lo table 7778")
    real.apply(SNAPSHOTS["moved"])
    assert real.read() == Installed(digest(SNAPSHOTS["moved"]), intact=True)


_DAMAGE = [
    ("nftables", "nft flush chain inet l7proxy judge"),
    ("nftables", "nft insert rule inet l7proxy guard accept"),
    ("nftables", "nft add element inet l7proxy own4 { veth9 . 10.1.0.11 }"),
    ("nftables", "nft delete element inet l7proxy ingress4 { 10.1.0.12 }"),
    ("nftables", "nft add table inet l7proxy { flags dormant; }"),
    ("nftables", "nft delete table bridge l7proxy"),
    ("nftables", "nft delete table inet l7proxy"),
    ("iptables", "iptables -t mangle -D PREROUTING -j L7P-PRE"),
    ("iptables", "ip6tables -t filter -D FORWARD 1"),
    ("iptables", "iptables -t filter -F L7P-REFUSE"),
    ("iptables", "iptables -t raw -I L7P-GUARD -j ACCEPT"),
    ("iptables", "iptables -t filter -I FORWARD -j ACCEPT"),
    ("iptables", "ebtables -t nat -F L7P-PRE"),
    *((name, "ip rule del priority 100") for name in BACKENDS),
    *((name, "ip -6 route del local default dev lo table 7777") for name in BACKENDS),
]


@pytest.mark.sandbox
@pytest.mark.parametrize(("name", "command"), _DAMAGE, ids=[command for _, command in _DAMAGE])
def test_damage_is_seen_and_repaired(make: Callable[[str], Kernel], name: str, command: str) -> None:
    kernel, snapshot = make(name), SNAPSHOTS["bridged"]
    kernel.apply(snapshot)
    before = kernel.listing()
    kernel.namespace.sh(command)
    found = kernel.read()
    assert found is None or not found.intact
    kernel.apply(snapshot)
    assert kernel.read() == Installed(digest(snapshot), intact=True)
    theirs = "-I FORWARD -j ACCEPT" in command
    assert [line for line in kernel.listing() if not theirs or not line.endswith("-A FORWARD -j ACCEPT")] == before


def test_the_fake_can_be_damaged_like_the_others() -> None:
    backend = FakeBackend()
    backend.apply(SNAPSHOTS["rich"])
    backend.damage()
    assert backend.read() == Installed(digest(SNAPSHOTS["rich"]), intact=False)
    backend.apply(SNAPSHOTS["rich"])
    assert backend.read() == Installed(digest(SNAPSHOTS["rich"]), intact=True)
    assert backend.applied == 2


@pytest.mark.sandbox
def test_a_member_taken_from_an_ipset_is_seen_and_put_back(make: Callable[[str], Kernel]) -> None:
    kernel = make("iptables")
    kernel.apply(SNAPSHOTS["rich"])
    before = kernel.listing()
    member = next(line for line in before if line.startswith("add L7P-"))
    kernel.namespace.sh(member.replace("add ", "ipset del ", 1).removesuffix(" nomatch"))
    assert kernel.read() == Installed(digest(SNAPSHOTS["rich"]), intact=False)
    kernel.apply(SNAPSHOTS["rich"])
    assert kernel.listing() == before


_FLOOD = """
import socket, sys, time
target, port, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
flood = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM)
for number in range(most):
    try:
        flood.sendto(b"forbidden", (target, port))
    except OSError:
        pass  # a refusal that came back by ICMP
    if number % 20 == 19:
        time.sleep(0.02)
"""


@pytest.mark.lab
@pytest.mark.parametrize("topology", ["routed", "bridge-nf-0"])
@pytest.mark.parametrize("name", BACKENDS)
def test_nothing_leaks_and_nothing_is_cut_while_snapshots_change(sandbox: None, name: str, topology: str) -> None:
    """A bounded flood of forbidden packets during 30 updates in a row, with an allowed packet between each."""
    world = World(topology, name)
    try:
        _changes_under_flood(world)
    finally:
        world.close()


def _changes_under_flood(world: World) -> None:
    target, client = world.server.addresses[4], (IDENTITY["client"],)
    snapshots = [
        world.snapshot(server_ingress=union((entry(ALLOW, 5000, protocol=17, peers=client), entry(ALLOW, 9000 + more))))
        for more in range(30)
    ]
    world.apply(snapshots[-1])
    with world.server.namespace.socket(4, socket.SOCK_DGRAM) as served:
        served.bind((target, 5000))
        # The forbidden port is the one that the client may use: only the identity differs.
        leaked: list[str] = []
        flood = world.stranger.namespace.do(
            lambda: subprocess.Popen([sys.executable, "-c", _FLOOD, target, "5000", "20000"], env=dict(os.environ))
        )
        try:
            with world.client.namespace.socket(4, socket.SOCK_DGRAM) as asking:
                for number, snapshot in enumerate(snapshots):
                    world.apply(snapshot)
                    word = f"allowed {number}".encode()
                    asking.sendto(word, (target, 5000))
                    leaked += _until(served, word)
            assert flood.poll() is None, "the flood ended before the changes did"
            served.settimeout(0.05)
            with suppress(TimeoutError):
                leaked.append(served.recv(100).decode())
            world.apply(world.snapshot())
            served.settimeout(2)
            assert served.recv(100) == b"forbidden", "the flood was there all the time"
        finally:
            flood.kill()
            flood.wait()
    assert leaked == []


def _until(served: socket.socket, word: bytes) -> list[str]:
    """Everything that arrives before the marker; the marker must arrive."""
    other: list[str] = []
    ends = time.monotonic() + 2
    while time.monotonic() < ends:
        heard = served.recv(100)
        if heard == word:
            return other
        other.append(heard.decode())
    pytest.fail("the allowed packet did not arrive")
