"""100 000 SYNs of one pod, as fast as its interface takes them: refused ones, and ones that go to the proxy.

Meanwhile other pods are served, the agent answers, and every refused packet has a flow or is counted.
"""

from __future__ import annotations

import ctypes
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from scapy.layers.inet import TCP

from tests.attacks.labs import AttackLab, Pod
from tests.attacks.packets import ethernet, internet
from tests.attacks.test_10_flood_hides_refusals import counted, told

SYNS = 100_000
DISTINCT = 1000
"""Source ports."""


class Buffer(ctypes.Structure):
    """struct iovec"""

    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class Message(ctypes.Structure):
    """struct mmsghdr"""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("buffers", ctypes.POINTER(Buffer)),
        ("buffer_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint32),
    )


def storm(pod: Pod, frames: Sequence[bytes], count: int) -> float:
    """Send `count` frames, the given ones in turn, with one system call for each round. The frames per second."""
    buffers = [Buffer(frame, len(frame)) for frame in frames]
    messages = (Message * len(frames))(*(Message(buffers=ctypes.pointer(one), buffer_count=1) for one in buffers))
    sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg

    def bound() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        made.bind((pod.interface, 0))
        return made

    sent, began = 0, time.monotonic()
    with pod.do(bound) as raw:
        while sent < count:
            done = sendmmsg(raw.fileno(), messages, min(len(frames), count - sent), 0)
            assert done > 0, ctypes.get_errno()
            sent += done
    return count / (time.monotonic() - began)


def syns(lab: AttackLab, source: Pod, target: Pod, family: int, port: int) -> list[bytes]:
    to = target.mac if lab.cni == "bridge" else source.gateway_mac
    head = ethernet(source.mac, to) / internet(source.addresses[family], target.addresses[family])
    return [bytes(head / TCP(sport=20000 + number, dport=port, flags="S")) for number in range(DISTINCT)]


@contextmanager
def storming(lab: AttackLab, source: Pod, target: Pod, family: int, port: int) -> Iterator[threading.Thread]:
    frames, rates = syns(lab, source, target, family, port), list[float]()
    thread = threading.Thread(target=lambda: rates.append(storm(source, frames, SYNS)))
    thread.start()
    try:
        yield thread
    finally:
        thread.join()
    assert rates, "the storm ended with an error"
    print(f"{rates[0]:.0f} SYNs a second")


def others_are_served(lab: AttackLab, family: int) -> None:
    victim = lab.pod("victim").addresses[family]
    assert lab.pod("far-friend").http(victim, "/public/x", seconds=5) == "200"
    assert lab.pod("far-friend").http(victim, "/secret", seconds=5) == "403"
    assert lab.pod("far-free").http(victim, seconds=5) == "refused"


@pytest.mark.once
def test_a_storm_of_refused_connections(lab: AttackLab, family: int) -> None:
    source, target = lab.pod("free"), lab.pod("victim")
    key = (source.addresses[family] if lab.backend == "nftables" else "", "default/victim", "not allowed")
    before, began = counted(lab).get(key, 0), time.time_ns()
    with storming(lab, source, target, family, 9000) as thread:
        others_are_served(lab, family)
        while thread.is_alive():
            others_are_served(lab, family)
    suppressed, deadline = 0, time.monotonic() + 15
    flows = 0
    while suppressed + flows < SYNS and time.monotonic() < deadline:  # a busy agent counts later
        flows = told(lab, began, source.addresses[family], target.addresses[family])
        suppressed = counted(lab).get(key, 0) - before
    assert suppressed + flows == SYNS
    assert lab.status("node-1")["flows"]["lost"] > 0


@pytest.mark.once
def test_a_storm_of_connections_to_the_proxy(lab: AttackLab, family: int) -> None:
    with storming(lab, lab.pod("friend"), lab.pod("victim"), family, 80) as thread:
        others_are_served(lab, family)
        while thread.is_alive():
            others_are_served(lab, family)
    others_are_served(lab, family)
    assert lab.status("node-1")["revision"] == lab.status("node-1")["enforced_revision"]
