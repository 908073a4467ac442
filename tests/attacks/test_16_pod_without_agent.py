"""Finding 16: a pod that starts while no agent runs has no policy and no port: it is held closed by its address.

The same holds before the first round that knows it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

from scapy.layers.inet import UDP

from tests.attacks.labs import AttackLab
from tests.attacks.packets import ethernet, internet, token
from tests.attacks.test_05_interface_without_pod import NAME, wait_for
from tests.attacks.test_pressure import agent


@contextlib.contextmanager
def stopped_agent(lab: AttackLab) -> Iterator[None]:
    process = agent(lab, "node-1")
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def test_it_reaches_nobody_and_only_the_node_reaches_it(lab: AttackLab, family: int) -> None:
    unpoliced, node = lab.pod("open"), lab.node("node-1")
    other = unpoliced.addresses[family]
    with stopped_agent(lab), lab.plugged(NAME, "node-1") as new, new.receiver(8080, family, kind=socket.SOCK_STREAM):
        own = new.addresses[family]
        assert new.connect(other, 9000) == "refused"
        assert new.connect(lab.pod("far-open").addresses[family], 9000) == "refused"
        assert new.connect(node.addresses[family], 22) == "refused"
        assert unpoliced.connect(own, 8080) == "refused"
        assert lab.pod("far-open").connect(own, 8080) == "refused"
        forbidden, to = token(), unpoliced.mac if lab.cni == "bridge" else new.gateway_mac
        with unpoliced.capture() as seen:
            new.send(ethernet(new.mac, to) / internet(own, other) / UDP(sport=9, dport=9000) / forbidden)
            assert not seen.arrived(forbidden)
        with node.open_socket(family) as kubelet:
            kubelet.connect((own, 8080))  # a probe
    wait_for(lambda: not lab.status("node-1")["unknown_pods"], 10)
