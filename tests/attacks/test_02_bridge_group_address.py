"""Finding 2. Frames to 01:80:c2:00:00:0x, which a bridge delivers up past its prerouting hook, bring no packet in."""

from __future__ import annotations

import time

import pytest
from scapy.layers.inet import UDP

from tests.attacks.labs import AttackLab
from tests.attacks.packets import ethernet, internet, token

pytestmark = pytest.mark.where(cni="bridge")
PORT = 4712
NOBODY = {4: "192.0.2.1", 6: "2001:db8::1"}


def test_no_frame_to_the_bridge_itself_brings_a_packet(lab: AttackLab, family: int) -> None:
    """A pod that may send nothing sends from its own address, another pod's and an unused one."""
    attacker, node, started = lab.pod("locked"), lab.node("node-1"), time.time_ns()
    sources = (attacker.addresses[family], lab.pod("friend").addresses[family], NOBODY[family])
    with node.receiver(PORT, family) as listening:
        for source in sources:
            for last in range(16):
                packet = internet(source, node.gateways[family]) / UDP(sport=1, dport=PORT) / token()
                attacker.send(ethernet(attacker.mac, f"01:80:c2:00:00:0{last:x}") / packet)
        listening.settimeout(0.25)
        with pytest.raises(TimeoutError):
            listening.recv(100)
    for source in sources:
        assert lab.flow("node-1", started, lambda flow, source=source: _from(flow, source)), "each is told"  # type: ignore[misc]


def _from(flow: dict[str, object], address: str) -> bool:
    ip = flow.get("IP")
    return flow.get("verdict") == "DROPPED" and isinstance(ip, dict) and ip.get("source") == address
