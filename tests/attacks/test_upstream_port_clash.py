"""A pod uses the same source port as the proxy's connection on its behalf, to the same server.

If both shared one conntrack entry, the pod would get no answer, and marks and translations would be shared.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.attacks.labs import AttackLab, Place
from tproxy_rules.desired import Settings

ENTRY = re.compile(r"src=(\S+) dst=(\S+) sport=(\d+) dport=80 .* mark=(\d+)")


@pytest.mark.parametrize("server", ["victim", "far-victim"])
def test_a_pod_takes_the_port_of_the_proxys_connection(lab: AttackLab, family: int, server: str) -> None:
    friend, address = lab.pod("friend"), lab.pod(server).addresses[family]
    with connection(friend, family, address) as first:
        assert status(first, "/public") == 200
        ports = upstream_ports(lab.node("node-1" if server == "victim" else "node-2"), friend.addresses[family])
        assert ports, "the proxy has a connection to the server"
        for port in ports:
            with connection(friend, family, address, port) as second:
                assert status(second, "/public") == 200
                assert status(second, "/secret") == 403
        assert status(first, "/public") == 200


@contextlib.contextmanager
def connection(pod: Place, family: int, address: str, port: int = 0) -> Iterator[socket.socket]:
    with pod.open_socket(family) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((pod.addresses[family], port))
        client.connect((address, 80))
        yield client


def status(client: socket.socket, target: str) -> int:
    """The status of one request on a connection that stays open."""
    client.sendall(f"GET {target} HTTP/1.1\r\nHost: victim\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += client.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    assert length, head
    while len(body) < int(length[1]):
        body += client.recv(65536)
    return int(head.split(b" ", 2)[1])


def upstream_ports(node: Place, source: str) -> list[int]:
    """The ports of the proxy's open connections on behalf of `source`, as the kernel lists them."""
    listed = node.sh("cat /proc/net/nf_conntrack").splitlines()
    found = [match for line in listed if "ESTABLISHED" in line and (match := ENTRY.search(line))]
    return [
        int(one[3])
        for one in found
        if int(one[4]) & Settings().mark_upstream and ip_address(one[1]) == ip_address(source)
    ]
