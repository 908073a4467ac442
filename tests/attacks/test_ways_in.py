"""Access to a pod by addresses that are not its own: node ports and external addresses, as kube-proxy provides them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.attacks.labs import AttackLab
from tests.attacks.packets import token

EXTERNAL = {4: "203.0.113.7", 6: "2001:db8::7"}


@pytest.fixture
def forwarded(lab: AttackLab, family: int) -> Iterator[str]:
    """Node ports 30080 and 30900 of node-1, and the external address, are forwarded to the victim."""
    node, victim = lab.node("node-1"), lab.pod("victim").addresses[family]
    own, kind = node.addresses[family], "ip" if family == 4 else "ip6"
    place = victim if family == 4 else f"[{victim}]"
    rules = [
        f"{kind} daddr {own} tcp dport 30080 dnat to {place}:80",
        f"{kind} daddr {own} meta l4proto {{ tcp, udp }} th dport 30900 dnat to {place}:9000",
        f"{kind} daddr {EXTERNAL[family]} tcp dport 80 dnat to {place}:80",
        f"{kind} daddr {EXTERNAL[family]} meta l4proto {{ tcp, udp }} th dport 9000 dnat to {place}:9000",
    ]
    node.sh(
        f"nft add table {kind} attack",
        f"nft add chain {kind} attack pre {{ type nat hook prerouting priority -100 ; }}",
        *(f"nft add rule {kind} attack pre {rule}" for rule in rules),
    )
    try:
        yield own
    finally:
        node.sh(f"nft delete table {kind} attack")


def test_a_node_port_and_an_external_address_are_judged_as_their_pod(
    lab: AttackLab, family: int, forwarded: str
) -> None:
    victim, sent = lab.pod("victim"), {}
    with victim.capture() as seen:
        for attacker in (lab.pod("free"), lab.pod("far-free"), lab.pod("locked")):
            for address, web, raw in ((forwarded, 30080, 30900), (EXTERNAL[family], 80, 9000)):
                mine = token()
                sent[mine] = f"{attacker.name} through {address}"
                attacker.http(address, f"/public/{mine.decode()}", port=web, seconds=0.2)
                attacker.connect(address, raw, mine, seconds=0.2)
                with contextlib.suppress(OSError):
                    attacker.datagram(address, raw, mine, seconds=0.05)
        assert not [sent[each] for each in seen.arrived(*sent)]


def test_whom_the_policy_lets_in_may_use_them_and_no_more(lab: AttackLab, family: int, forwarded: str) -> None:
    friend, victim = lab.pod("friend"), lab.pod("victim")
    for address, web, raw in ((forwarded, 30080, 30900), (EXTERNAL[family], 80, 9000)):
        secret = token()
        assert friend.connect(address, raw).split()[0] == friend.addresses[family]
        assert friend.datagram(address, raw, seconds=1)
        with victim.capture() as seen:
            friend.http(address, f"/secret/{secret.decode()}", port=web, seconds=0.5)
            assert not seen.arrived(secret)
