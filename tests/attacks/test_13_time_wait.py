"""Finding 13: a SYN on a port for which the proxy's socket is in TIME_WAIT still goes through TPROXY.

Without it the kernel looks for a listener of the packet's destination port and finds the node's: a pod that may speak
HTTP to one pod would reach the node's own ports, without a verdict.
"""

from __future__ import annotations

import socket

from tests.attacks.labs import AttackLab, Place

PORT = 33_333


def test_a_syn_that_meets_time_wait_goes_to_the_proxy(lab: AttackLab, family: int) -> None:
    friend, victim, node = lab.pod("friend"), lab.pod("victim").addresses[family], lab.node("node-1")
    with node.receiver(80, family, kind=socket.SOCK_STREAM) as nodes_own:
        assert [_status(friend, family, victim, target) for target in ("/public", "/public", "/secret")] == [
            200,
            200,
            403,
        ]
        assert _status(friend, family, victim, "/public") == 200
        nodes_own.settimeout(0)
        try:
            nodes_own.accept()
        except BlockingIOError:
            return
        raise AssertionError("the pod has reached a socket of its node")


def _status(pod: Place, family: int, address: str, target: str) -> int:
    """The status of one request from a fixed client port, read to the end: the proxy closes first."""
    with pod.open_socket(family) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((pod.addresses[family], PORT))
        client.connect((address, 80))
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: victim\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while more := client.recv(4096):
            answer += more
        return int(answer.split(b" ", 2)[1])
