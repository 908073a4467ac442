"""Finding 6: a deny also stops the UDP replies of a server that was queried before, also to the address's next owner.

Conntrack takes every datagram of a known pair for a reply, and each one keeps its entry alive.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.attacks.labs import AttackLab, Place
from tests.attacks.packets import token

PORT = 9001
ASKER = 9002
CLOSED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: asker}
spec:
  endpointSelector: {matchLabels: {role: asker}}
  ingress: [{fromEndpoints: [{matchLabels: {role: nobody}}]}]
"""
DENIED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: asker-may-not}
spec:
  endpointSelector: {matchLabels: {role: asker}}
  egressDeny: [{toEndpoints: [{matchLabels: {role: free}}]}]
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {role: asker}}
spec: {nodeName: node-1, containers: [{name: echo, image: none}]}
"""


@pytest.mark.parametrize("server", ["free", "far-free"])
def test_replies_end_with_the_permission_to_ask(lab: AttackLab, family: int, server: str) -> None:
    with lab.applied(POD.replace("NAME", "asker")), lab.applied(CLOSED):
        asker = lab.pod("asker")
        with talk(asker, lab.pod(server), family) as (listening, answer), lab.applied(DENIED):
            assert_silence(listening, answer)


@pytest.mark.parametrize("server", ["free", "far-free"])
def test_replies_do_not_reach_the_next_owner_of_an_address(lab: AttackLab, family: int, server: str) -> None:
    speaking = lab.pod(server)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab.applied(CLOSED))
        with lab.applied(POD.replace("NAME", "first")):
            first = lab.pod("first")
            _, answer = stack.enter_context(talk(first, speaking, family))
        stack.enter_context(lab.applied(POD.replace("NAME", "second")))
        second = lab.pod("second")
        assert second.addresses[family] == first.addresses[family], "the lab gives a free address again"
        with second.receiver(ASKER, family) as listening:
            assert_silence(listening, answer)


Answer = tuple[socket.socket, tuple[str, int]]


@contextlib.contextmanager
def talk(asker: Place, server: Place, family: int) -> Iterator[tuple[socket.socket, Answer]]:
    """The client's socket and the server's reply function, after one query and one answer."""
    with asker.receiver(ASKER, family) as listening, server.receiver(PORT, family) as speaking:
        for _ in range(10):  # traffic of the address's previous owner ends a moment after the owner
            listening.sendto(b"question", (server.addresses[family], PORT))
            _, peer = speaking.recvfrom(100)
            answer = (speaking, peer[:2])
            if heard(listening, answer):
                yield listening, answer
                return
        raise AssertionError("no answer passes")


def heard(listening: socket.socket, answer: Answer) -> bool:
    """Whether a datagram that the server sends now arrives."""
    speaking, peer = answer
    sent = token()
    with contextlib.suppress(OSError):  # an ICMP error for an earlier datagram
        speaking.sendto(sent, peer)
    listening.settimeout(0.15)
    with contextlib.suppress(TimeoutError):
        while listening.recv(100) != sent:
            pass
        return True
    return False


def assert_silence(listening: socket.socket, answer: Answer) -> None:
    """Replies end within a second of the change, although the server keeps sending."""
    deadline = time.monotonic() + 1
    while heard(listening, answer):
        assert time.monotonic() < deadline, "the server still speaks to it"
    assert not any(heard(listening, answer) for _ in range(3))
