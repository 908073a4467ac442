"""A pod fills the node's conntrack table: nothing forbidden passes, and other pods recover."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.labs import AttackLab, Pod
from tests.attacks.packets import token
from tests.attacks.test_pressure import verdicts_hold

pytestmark = pytest.mark.alone
MAX, COUNT = (Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}") for name in ("max", "count"))
LIMIT = 20_000
"""Limit for each network namespace of the machine during the test: far above what all else here tracks."""
UDP_TIMEOUT = "net/netfilter/nf_conntrack_udp_timeout"


@pytest.fixture
def small_table() -> Iterator[None]:
    """The limit is machine-wide, and only the initial network namespace may set it."""
    before = MAX.read_text()
    if int(COUNT.read_text()) * 2 > LIMIT:
        pytest.skip("this machine itself tracks too many connections for the limit of the test")
    try:
        MAX.write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"{MAX}: {error.strerror}")
    try:
        yield
    finally:
        MAX.write_text(before)


def fill(attacker: Pod, address: str, family: int) -> None:
    """One empty datagram from every port: one conntrack entry each."""
    with attacker.open_socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        if family == 6:
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_CHECKSUM, 6)
        for source in range(1024, 65536):
            raw.sendto(struct.pack(">HHHH", source, 9, 8, 0), (address, 0))


def tracked(lab: AttackLab) -> int:
    return int(lab.node("node-1").sh(f"cat {COUNT}"))


def test_a_full_table_of_connections_opens_nothing(lab: AttackLab, family: int, small_table: None) -> None:
    free, friend, victim, opened = (lab.pod(name) for name in ("free", "friend", "victim", "open"))
    ours = victim.addresses[family]
    fill(free, opened.addresses[family], family)
    assert tracked(lab) > LIMIT * 0.9
    sent = token()
    with victim.capture() as seen:
        for _ in range(20):
            free.connect(ours, 9000, sent, seconds=0.05)
            with contextlib.suppress(OSError):
                free.datagram(ours, 9000, sent, seconds=0.01)
        free.http(ours, f"/public/{sent.decode()}", seconds=0.2)
        friend.http(ours, f"/secret/{sent.decode()}", seconds=0.5)
        assert not seen.arrived(sent)
    assert [friend.http(ours, "/public/x", seconds=3) for _ in range(5)].count("200") >= 1, "others are still served"


@pytest.mark.once
def test_the_others_are_served_when_the_table_has_room_again(lab: AttackLab, small_table: None) -> None:
    free, opened, family = lab.pod("free"), lab.pod("open"), lab.families[0]
    node = lab.node("node-1")
    before = node.sh(f"cat /proc/sys/{UDP_TIMEOUT}").strip()
    node.write(UDP_TIMEOUT, 2)
    try:
        fill(free, opened.addresses[family], family)
        assert tracked(lab) > LIMIT * 0.9
        deadline = time.monotonic() + 60
        while tracked(lab) > LIMIT / 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        verdicts_hold(lab)
    finally:
        node.write(UDP_TIMEOUT, before)
