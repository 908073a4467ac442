"""Finding 12. A pod cannot deny an address to others by duplicate address detection: only its own is allowed."""

from __future__ import annotations

import pytest
from scapy.layers.l2 import ARP

from tests.attacks.labs import AttackLab
from tests.attacks.packets import BROADCAST, ethernet, neighbour_solicitation

pytestmark = pytest.mark.where(cni="bridge")


@pytest.mark.where(family=6)
def test_no_detection_of_anothers_address(lab: AttackLab) -> None:
    attacker, victim = lab.pod("free"), lab.pod("victim")
    for address in (victim.addresses[6], victim.link_local):
        shot = bytes(neighbour_solicitation(attacker.mac, "::", address))
        with victim.capture() as seen:
            attacker.send(shot)
            assert shot not in seen.packets()
    for address in (attacker.addresses[6], attacker.link_local):
        shot = bytes(neighbour_solicitation(attacker.mac, "::", address))
        with victim.capture() as seen:
            attacker.send(shot)
            assert shot in seen.packets(), "its own it may detect"


def test_no_arp_probe_for_anothers_address(lab: AttackLab) -> None:
    """RFC 5227, 2.1.1: two hosts that probe for one address at the same time both give it up."""
    if 4 not in lab.families:
        pytest.skip("no IPv4 here")
    attacker, victim = lab.pod("free"), lab.pod("victim")
    for owner, passes in ((victim, False), (attacker, True)):
        ask = ARP(op=1, hwsrc=attacker.mac, psrc="0.0.0.0", pdst=owner.addresses[4])
        shot = bytes(ethernet(attacker.mac, BROADCAST) / ask)
        with victim.capture() as seen:
            attacker.send(shot)
            assert (shot in seen.packets()) is passes
