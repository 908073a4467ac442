"""Finding 9: a worker that was stopped does not evaluate queued traffic by an old policy."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.attacks.labs import AttackLab
from tests.attacks.packets import token

REVOKED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: revoked}
spec:
  endpointSelector: {matchLabels: {role: victim}}
  ingressDeny:
  - fromEndpoints: [{matchLabels: {role: friend}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"""
KEPT = 8
"""Connections, enough for every worker to have some."""


def test_what_queued_up_for_a_stopped_worker_is_judged_by_the_present_policy(lab: AttackLab, family: int) -> None:
    friend, victim = lab.pod("friend"), lab.pod("victim")
    address = victim.addresses[family]
    allowed, forbidden = token(), token()
    kept = [friend.open_socket(family, seconds=5) for _ in range(KEPT)]
    for client in kept:
        client.connect((address, 80))
        client.sendall(request(allowed))
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    with victim.capture() as seen:
        applying = threading.Thread(target=lab.apply, args=(REVOKED,))  # returns when workers have applied the change
        before = lab.status("node-1")["kernel"]["digest"]
        with stopped(lab, "node-1"):
            applying.start()
            wait(lambda: lab.status("node-1")["kernel"]["digest"] != before)
            for client in kept:
                client.sendall(request(forbidden))
        assert seen.arrived(forbidden) == set()
    applying.join()
    lab.delete(REVOKED)
    for client in kept:
        client.close()
    assert friend.http(address) == "200"


def request(mark: bytes) -> bytes:
    return b"GET /public/%b HTTP/1.1\r\nHost: victim\r\n\r\n" % mark


@contextmanager
def stopped(lab: AttackLab, node: str) -> Iterator[None]:
    """Stops the workers of a node (SIGSTOP)."""
    pids = [worker["pid"] for worker in lab.status(node)["workers"]]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def wait(holds: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
