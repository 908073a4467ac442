"""Probes for the kernel features that the nftables backend needs, and a sample state that uses every feature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tproxy_rules.desired import Bridge, Desired, Endpoint, Entry, Port, Settings, Table, Tier, Verdict
from tproxy_rules.marks import TABLE


def sample() -> Desired:
    """A desired state with one of everything."""
    any_port, peers = (0, 65535), (5,)
    first = (
        Entry(Verdict.DENY, -1, *any_port, any_peer=False, peers=peers),
        Entry(Verdict.PASS, 58, 128 << 8, 129 << 8, any_peer=False, peers=peers),
        Entry(Verdict.PASS, 1, 8 << 8, 8 << 8, any_peer=True, peers=()),
    )
    second = (
        Entry(Verdict.ALLOW, 17, 53, 99, any_peer=False, peers=peers),
        Entry(Verdict.STEER, 6, 80, 80, any_peer=True, peers=()),
        Entry(Verdict.STEER, 17, 5353, 5353, any_peer=True, peers=()),
        Entry(Verdict.ALLOW, 132, *any_port, any_peer=False, peers=peers),
    )
    tiered = Table((Tier((first,), closed=False), Tier((second, first[:1]), closed=True)))
    return Desired(
        settings=Settings(listeners=((6, 15001), (17, 15002))),
        identities=(("0.0.0.0/0", 2), ("10.0.0.0/8", 3), ("10.0.0.1/32", 4), ("fd00::/8", 3)),
        endpoints=(
            Endpoint(1, ("10.0.0.1", "fd00::1"), Port("p", "02:00:00:00:00:01", "b"), tiered, Table(())),
            Endpoint(2, ("10.0.0.2",), Port("q"), Table((Tier((), closed=True),))),
        ),
        bridges=(Bridge("b", "02:00:00:00:00:02"),),
    )


def probes(render: Callable[[Desired], str]) -> tuple[tuple[str, str], ...]:
    """(required feature, a transaction that uses it), the most basic first."""
    rules = render(sample())
    for family in ("inet", "bridge"):
        rules = rules.replace(f"{family} {TABLE}", f"{family} {TABLE}-probe")
    return (*_PROBES, ("the rules of l7proxy", rules))


def _probe(hook: str, rule: str, family: str = "inet", kind: str = "filter") -> str:
    base = f"type {kind} hook {hook} priority -90; policy accept;"
    return f"table {family} {TABLE}-probe {{\n\tchain c {{\n\t\t{base}\n\t\t{rule}\n\t}}\n}}\n"


_PROBES: Final = (
    ("tables of the inet family (CONFIG_NF_TABLES_INET)", f"table inet {TABLE}-probe\n"),
    ("connection tracking (CONFIG_NFT_CT, nf_conntrack)", _probe("prerouting", "ct direction reply accept")),
    ("zones of connection tracking (CONFIG_NF_CONNTRACK_ZONES)", _probe("output", "ct original zone set 1")),
    ("address translation (CONFIG_NFT_NAT)", _probe("postrouting", "accept", kind="nat")),
    ("TPROXY (CONFIG_NFT_TPROXY, nft_tproxy)", _probe("prerouting", "meta l4proto tcp tproxy to :1")),
    ("socket matching (CONFIG_NFT_SOCKET, nft_socket; Linux 5.14)", _probe("prerouting", "socket wildcard 0")),
    ("logging to a group (CONFIG_NFT_LOG, nfnetlink_log)", _probe("prerouting", "log group 1")),
    (
        "resets in prerouting (CONFIG_NFT_REJECT_INET; Linux 5.9)",
        _probe("prerouting", "tcp dport 1 reject with tcp reset"),
    ),
    ("route lookups (CONFIG_NFT_FIB_INET, nft_fib_inet)", _probe("prerouting", "fib daddr type local accept")),
    ("tables of the bridge family (CONFIG_NF_TABLES_BRIDGE)", _probe("prerouting", "accept", "bridge")),
)
