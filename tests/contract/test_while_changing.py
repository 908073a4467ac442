"""A peer identified by a prefix keeps its identity while other prefixes change under traffic.

Ranges are removed and added again as a whole, in one transaction: no packet may see the state between.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.contract.conftest import OUTSIDE, World, entry
from tproxy_rules.desired import Table, Verdict, union

pytestmark = pytest.mark.lab
ALLOW, DENY = Verdict.ALLOW, Verdict.DENY
PORT = 5001
SO_RCVBUFFORCE = 33  # socket(7); not in Python's socket module
ROOM = 16 << 20
"""Bytes: large enough that nothing is lost here while the listener waits to run."""
_NUMBERED = """
import socket, sys, time
target, port = sys.argv[1], int(sys.argv[2])
sending = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM)
number = 0
while True:
    number += 1
    try:
        sending.sendto(b"%d" % number, (target, port))
    except OSError:
        pass  # a refusal that came back by ICMP
    time.sleep(0.0005)
"""


@contextmanager
def numbered_from_outside(world: World, family: int) -> Iterator[list[int]]:
    """The sequence numbers that arrive from the datagrams of the outside host."""
    target, arrived = world.server.addresses[family], list[int]()
    with world.server.namespace.socket(family, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        server.bind((target, PORT))
        server.settimeout(0.2)
        over = threading.Event()

        def listen() -> None:
            while not over.is_set():
                try:
                    arrived.append(int(server.recv(100)))
                except TimeoutError:
                    continue

        listening = threading.Thread(target=listen, name="listening")
        listening.start()
        command = [sys.executable, "-c", _NUMBERED, target, str(PORT)]
        sending = world.outside.namespace.do(lambda: subprocess.Popen(command))
        try:
            yield arrived
        finally:
            sending.kill()
            sending.wait()
            over.set()
            listening.join()


def change_prefixes(world: World, table: Table) -> None:
    base = world.snapshot(server_ingress=table)
    for step in range(25):
        more = tuple((f"10.{40 + n}.0.0/16", 7 + n) for n in range(step % 5))
        more6 = tuple((f"fd00:{40 + n}::/32", 7 + n) for n in range(step % 3))
        world.apply(replace(base, identities=(*base.identities, *more, *more6)))


def test_who_is_allowed_by_a_prefix_loses_nothing(world: World, family: int) -> None:
    table = union((entry(ALLOW, protocol=17, peers=(OUTSIDE,)),))
    world.apply(world.snapshot(server_ingress=table))
    with numbered_from_outside(world, family) as arrived:
        change_prefixes(world, table)
    missing = set(range(arrived[0], arrived[-1])) - set(arrived)
    assert len(arrived) > 100
    assert not missing


def test_who_is_denied_by_a_prefix_gets_nothing_through(world: World, family: int) -> None:
    table = union((entry(ALLOW, protocol=17), entry(DENY, protocol=17, peers=(OUTSIDE,))))
    world.apply(world.snapshot(server_ingress=table))
    with numbered_from_outside(world, family) as arrived:
        change_prefixes(world, table)
        assert arrived == []
        world.apply(world.snapshot())
        for _ in range(50):
            if arrived:
                break
            threading.Event().wait(0.05)
        assert arrived, "they were sent all the time"
