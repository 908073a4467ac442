"""The lab itself: allowed traffic arrives and forbidden traffic does not. Also a template for an attack test."""

from __future__ import annotations

import time

from scapy.layers.inet import UDP

from tests.attacks.labs import AttackLab
from tests.attacks.packets import ethernet, internet, token


def test_roles_are_as_written(lab: AttackLab, family: int) -> None:
    free, locked, friend = lab.pod("free"), lab.pod("locked"), lab.pod("friend")
    for prefix in ("", "far-"):
        victim, other, ally = (lab.pod(prefix + name).addresses[family] for name in ("victim", "open", "friend"))
        assert friend.http(victim, "/public/x") == "200"
        assert friend.http(victim, "/secret") == "403"
        assert friend.connect(victim, 9000).split()[0] == friend.addresses[family]
        assert b"hello" in (friend.datagram(victim, 9000, seconds=1) or b"")
        assert free.http(victim) == "refused"
        assert free.connect(other, 9000).split()[0] == free.addresses[family]
        assert locked.connect(other, 9000) == "refused"
        assert locked.connect(ally, 9000).split()[0] == locked.addresses[family]


def test_a_raw_frame_arrives_where_it_may_and_is_refused_with_a_flow(lab: AttackLab, family: int) -> None:
    attacker, began = lab.pod("free"), time.time_ns()
    for name, may in (("open", True), ("victim", False)):
        target, sent = lab.pod(name), token()
        source, destination = attacker.addresses[family], target.addresses[family]
        to = target.mac if lab.cni == "bridge" else attacker.gateway_mac
        with target.capture() as seen:
            attacker.send(
                ethernet(attacker.mac, to) / internet(source, destination) / UDP(sport=4000, dport=9000) / sent
            )
            assert seen.arrived(sent) == ({sent} if may else set())
    victim = lab.pod("victim").addresses[family]
    assert lab.flow(
        "node-1",
        began,
        lambda f: (
            f["verdict"] == "DROPPED"
            and f["IP"]["destination"] == victim
            and f["l4"].get("UDP", {}).get("source_port") == 4000
        ),
    )
