"""Every refusal names the error and its location; valid input passes unchanged except for its order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tproxy_rules.backend import KernelError
from tproxy_rules.desired import Bridge, Desired, Endpoint, Entry, Frontend, Port, Settings, Table, Tier, Verdict, union
from tproxy_rules.digest import digest, normalise
from tproxy_rules.marks import LogDirection, LogEvent, log_prefix, read_prefix
from tproxy_rules.validate import checked

MAC = "02:00:00:00:00:01"
POD = Endpoint(1, ("10.1.0.11", "fd00:1::b"), Port("veth1", MAC))


def entry(**changes: object) -> Entry:
    return replace(Entry(Verdict.ALLOW, 6, 80, 80, any_peer=True, peers=()), **changes)  # type: ignore[arg-type]


def having(**changes: object) -> Desired:
    return Desired(endpoints=(replace(POD, **changes),))  # type: ignore[arg-type]


def ruled(**changes: object) -> Desired:
    return having(egress=union((entry(), entry(**changes))))


def settings(**changes: object) -> Desired:
    return Desired(settings=Settings(**changes))  # type: ignore[arg-type]


REFUSED = [
    (settings(mark_proxy=3), "settings.mark_proxy: 0x3 must be a single bit"),
    (settings(mark_upstream=0), "settings.mark_upstream: 0x0 must be a single bit"),
    (settings(mark_proxy=1 << 32), "settings.mark_proxy: 0x100000000 must be a single bit"),
    (settings(mark_proxy=4, mark_upstream=4), "settings.mark_upstream must differ from mark_proxy"),
    (settings(listeners=((6, 0),)), "settings.listeners: port 0 must be between 1 and 65535"),
    (settings(listeners=((132, 1),)), "settings.listeners: protocol 132 cannot be redirected, only TCP and UDP can"),
    (settings(listeners=((6, 1), (6, 2))), "settings.listeners: a protocol has two ports"),
    (settings(nflog_group=65536), "settings.nflog_group: 65536 must be between 1 and 65535"),
    (settings(log_rate=0), "settings.log_rate: 0 must be between 1 and 1000000"),
    (settings(rule_priority=2), "settings.rule_priority: 2 must be between 3 and 32765"),
    (settings(route_table=254), "settings.route_table: 254 is reserved by the kernel"),
    (settings(families=()), "settings.families: () must contain only 4 and 6"),
    (settings(families=(5,)), "settings.families: (5,) must contain only 4 and 6"),
    (Desired(identities=(("10.0.0.1/8", 7),)), "identities: 10.0.0.1/8 has host bits set"),
    (Desired(identities=(("pods", 7),)), "identities: 'pods' does not appear to be an IPv4 or IPv6 network"),
    (Desired(identities=(("fd00::/8", 7), ("FD00::/8", 8))), "identities: duplicate FD00::/8"),
    (Desired(identities=(("10.0.0.0/8", 1 << 32),)), "identities: 4294967296 of 10.0.0.0/8 must be a 32-bit number"),
    (Desired(bridges=(Bridge("cni0", MAC), Bridge("cni0", MAC))), "bridges: duplicate name"),
    (Desired(bridges=(Bridge("cni0", "02:AA:00:00:00:01"),)), "bridges: cni0: '02:AA:00:00:00:01' must be a MAC"),
    (Desired(bridges=(Bridge("cni*", MAC),)), "bridges: 'cni*' is not a valid interface name"),
    (Desired(host_identity=-1), "host_identity -1 must be a 32-bit number"),
    (having(id=0), "endpoint 0: its id must be between 1 and 2^32-1"),
    (having(addresses=("10.1.0",)), "endpoint 1: addresses: '10.1.0' does not appear to be an IPv4 or IPv6 address"),
    (having(addresses=("::1",)), "endpoint 1: addresses: ::1 cannot be the address of a pod"),
    (having(addresses=("0.0.0.0",)), "endpoint 1: addresses: 0.0.0.0 cannot be the address of a pod"),
    (having(addresses=("ff02::1",)), "endpoint 1: addresses: ff02::1 cannot be the address of a pod"),
    (having(port=Port("")), "endpoint 1: port.interface: '' is not a valid interface name"),
    (having(port=Port("a" * 16)), "is not a valid interface name"),
    (having(port=Port('v" accept')), "endpoint 1: port.interface: 'v\" accept' is not a valid interface name"),
    (having(port=Port("veth+")), "endpoint 1: port.interface: 'veth+' is not a valid interface name"),
    (having(port=Port("veth1\n")), "endpoint 1: port.interface: 'veth1\\n' is not a valid interface name"),
    (having(port=Port("v", "x")), "endpoint 1: port.mac: 'x' must be a MAC address in lower case"),
    (having(port=Port("v", MAC, "br0")), "endpoint 1: port.bridge: 'br0' is not in bridges"),
    (
        Desired(endpoints=(replace(POD, port=Port("v", "", "b")),), bridges=(Bridge("b", MAC),)),
        "endpoint 1: port.mac is required for a bridge port",
    ),
    (ruled(protocol=256), "endpoint 1: egress.tiers[0].stages[0][1]: protocol 256 must be between -1 and 255"),
    (ruled(first=9, last=8), "endpoint 1: egress.tiers[0].stages[0][1]: ports 9–8 must be a range within 0–65535"),
    (ruled(last=65536), "egress.tiers[0].stages[0][1]: ports 80–65536 must be a range"),
    (ruled(protocol=47), "egress.tiers[0].stages[0][1]: protocol 47 has no ports: the range must be 0–65535"),
    (ruled(protocol=-1), "egress.tiers[0].stages[0][1]: protocol -1 has no ports"),
    (
        ruled(verdict=Verdict.STEER, protocol=132),
        "egress.tiers[0].stages[0][1]: only TCP and UDP can be redirected, not protocol 132",
    ),
    (ruled(peers=(5,)), "egress.tiers[0].stages[0][1]: peers must be empty if any_peer is set"),
    (ruled(any_peer=False, peers=(0,)), "egress.tiers[0].stages[0][1]: peer 0 must be between 1 and 2^32-1"),
    (having(ingress=Table((Tier((), closed=True),) * 12)), "endpoint 1: ingress.tiers: 12 exceeds the limit of 11"),
    (Desired(endpoints=(POD, POD)), "duplicate endpoint 1"),
    (
        Desired(endpoints=(POD, replace(POD, id=2, port=None, addresses=("FD00:1:0::B",)))),
        "address FD00:1:0::B belongs to endpoints 1 and 2",
    ),
    (
        Desired(endpoints=(POD, replace(POD, id=2, addresses=()))),
        "interface veth1 belongs to two endpoints, the second is 2",
    ),
    (Desired(frontends=(Frontend("x", 6, 80, steer=True),)), "frontends: 'x' does not appear to be an IPv4 or IPv6"),
    (Desired(frontends=(Frontend("10.0.0.1", 6, 65536, steer=True),)), "frontends: 10.0.0.1: protocol 6, port 65536"),
    (
        Desired(frontends=(Frontend("10.0.0.1", 132, 53, steer=True),)),
        "frontends: 10.0.0.1: only TCP and UDP can be redirected, not protocol 132",
    ),
]


@pytest.mark.parametrize(("snapshot", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_a_refusal_says_what_and_where(snapshot: Desired, says: str) -> None:
    with pytest.raises(KernelError) as refusal:
        checked(snapshot)
    assert str(refusal.value).startswith("invalid desired state: ")
    assert says in str(refusal.value)


def test_a_good_snapshot_passes_in_canonical_form() -> None:
    snapshot = ruled(protocol=132, any_peer=False, peers=(9, 5, 9))
    assert checked(snapshot) == normalise(snapshot)
    assert normalise(normalise(snapshot)) == normalise(snapshot)


SHUFFLED = (
    Desired(
        settings=Settings(families=(6, 4)),
        identities=(("FD00::/8", 7), ("10.0.0.0/8", 8)),
        endpoints=(
            Endpoint(2, ("10.1.0.12",), ingress=union(())),
            replace(POD, ingress=union((entry(first=1, any_peer=False, peers=(5, 3)), entry()))),
        ),
        bridges=(Bridge("b", MAC), Bridge("a", MAC)),
        frontends=(Frontend("FD00:96::9", 6, 80, steer=True), Frontend("10.96.0.9", 6, 80, steer=False)),
    ),
    Desired(
        identities=(("10.0.0.0/8", 8), ("fd00::/8", 7), ("10.0.0.0/8", 8)),
        endpoints=(
            replace(
                POD,
                addresses=POD.addresses[::-1],
                ingress=union((entry(), entry(), entry(first=1, any_peer=False, peers=(3, 5)))),
            ),
            Endpoint(2, ("10.1.0.12",), ingress=union(())),
        ),
        bridges=(Bridge("a", MAC), Bridge("b", MAC)),
        frontends=(Frontend("10.96.0.9", 6, 80, steer=False), Frontend("fd00:96::9", 6, 80, steer=True)),
    ),
)


def test_the_order_of_input_does_not_matter() -> None:
    assert digest(SHUFFLED[0]) == digest(SHUFFLED[1])


def test_no_policy_and_an_empty_policy_are_two_snapshots() -> None:
    snapshots = [having(), having(ingress=union(())), having(egress=union(())), ruled(), ruled(verdict=Verdict.DENY)]
    assert len({digest(one) for one in snapshots}) == len(snapshots)


@pytest.mark.parametrize("told", LogEvent)
@pytest.mark.parametrize("way", LogDirection)
def test_a_prefix_is_read_back(told: LogEvent, way: LogDirection) -> None:
    longest = log_prefix(told, way, 0xFFFF_FFFF)
    assert read_prefix(longest) == (told, way, 0xFFFF_FFFF)
    assert len(longest) < 64


@pytest.mark.parametrize(
    "prefix",
    ["", "l7p", "l7p:allow:ingress", "l7p:allow:ingress:", "l7p:allow:ingress:-1", "l7p:allow:ingress:1:2",
     "l7p:allow:inside:1", "l7p:maybe:ingress:1", "L7P:allow:ingress:1", "l7p:allow:ingress:²", "cali:allow:ingress:1"],
)  # fmt: skip
def test_another_prefix_is_not_ours(prefix: str) -> None:
    assert read_prefix(prefix) is None
