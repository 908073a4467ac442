"""Finding 5: a pod whose interface exists but whose Pod object is unknown is isolated.

This is every pod between the setup of its network and its Pod's address, and one whose object goes before its sandbox.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import UDP

from l7proxy.model.net import family_of
from tests.attacks.labs import AttackLab, Flow, Pod
from tests.attacks.packets import ethernet, internet, token

NAME = "default/unknown"
SOON = 3.0
"""Seconds within which a new interface must be isolated; without an event the agent checks every 5 s."""
POD = """
apiVersion: v1
kind: Pod
metadata: {{name: unknown, namespace: default}}
spec: {{nodeName: node-1, containers: [{{name: c}}]}}
status: {{podIPs: [{addresses}]}}
"""


def wait_for(met: Callable[[], bool], seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


@contextlib.contextmanager
def unknown_pod(lab: AttackLab) -> Iterator[Pod]:
    """An isolated interface; the agent forgets it afterwards, because the next test uses the same names."""
    with lab.plugged(NAME, "node-1") as pod:
        wait_for(lambda: is_closed(lab, pod))
        yield pod
    wait_for(lambda: not lab.status("node-1")["unknown_pods"])


def is_closed(lab: AttackLab, pod: Pod) -> bool:
    """Status lists the interface as unknown, by name, and the revision with it is enforced."""
    status = lab.status("node-1")
    named = any(one["interface"] == pod.port and one["pod"] == NAME for one in status.get("unknown_pods", []))
    return named and status["revision"] == status["enforced_revision"]


def refusal(lab: AttackLab, since: int, source: str, destination: str) -> Flow | None:
    return lab.flow(
        "node-1",
        since,
        lambda flow: (
            (flow["verdict"], flow["IP"]["source"], flow["IP"]["destination"]) == ("DROPPED", source, destination)
        ),
    )


def test_nothing_leaves_it_and_only_the_node_enters(lab: AttackLab, family: int) -> None:
    unpoliced, node = lab.pod("open"), lab.node("node-1")
    with unknown_pod(lab) as unknown, unknown.receiver(8080, family, kind=socket.SOCK_STREAM):
        own, other = unknown.addresses[family], unpoliced.addresses[family]
        began = time.time_ns()
        assert unknown.connect(other, 9000) == "refused"
        assert unknown.http(lab.pod("far-open").addresses[family]) == "refused"
        assert unknown.connect(node.addresses[family], 22) == "refused"
        assert not unknown.ping(other)
        assert unpoliced.connect(own, 8080) == "refused"
        forbidden, to = token(), unpoliced.mac if lab.cni == "bridge" else unknown.gateway_mac
        with unpoliced.capture() as seen:
            unknown.send(ethernet(unknown.mac, to) / internet(own, other) / UDP(sport=9, dport=9000) / forbidden)
            assert not seen.arrived(forbidden)
        with node.open_socket(family) as kubelet:
            kubelet.connect((own, 8080))  # a probe

        for source, destination in ((own, other), (other, own)):
            flow = refusal(lab, began, source, destination)
            assert flow is not None
            assert "unknown pod: no Pod object with address" in str(flow["policy_log"])
            assert own in str(flow["policy_log"])


def test_it_cannot_take_the_address_of_another(lab: AttackLab, family: int) -> None:
    """Nor may it forge the address of a pod of the other node, which has no interface on this node."""
    victim, impersonated = lab.pod("open"), lab.pod("far-friend").addresses[family]
    with unknown_pod(lab) as unknown:
        forbidden, to = token(), victim.mac if lab.cni == "bridge" else unknown.gateway_mac
        with victim.capture() as seen:
            unknown.send(
                ethernet(unknown.mac, to)
                / internet(impersonated, victim.addresses[family])
                / UDP(sport=9, dport=9000)
                / forbidden
            )
            assert not seen.arrived(forbidden)


@pytest.mark.where(family=4)
def test_it_opens_when_its_pod_comes_and_closes_when_it_goes(lab: AttackLab) -> None:
    """Only the Pod object comes and goes; the interface stays."""
    other = lab.pod("open").addresses
    store = lab.lab.store.directory
    with unknown_pod(lab) as unknown:
        listed = ", ".join(f"{{ip: '{address}'}}" for address in unknown.addresses.values())
        path = store / "unknown.yaml"
        try:
            path.write_text(POD.format(addresses=listed))
            wait_for(lambda: not is_closed(lab, unknown) and path.name in lab.status("node-1")["source"]["detail"], 10)
            wait_for(
                lambda: all(
                    unknown.connect(one, 9000).split()[0] == unknown.addresses[family_of(one)] for one in other.values()
                ),
                10,
            )
        finally:
            path.unlink()
        wait_for(lambda: is_closed(lab, unknown), 10)
        assert {unknown.connect(one, 9000) for one in other.values()} == {"refused"}
