"""A stopped agent, sockets full of garbage, workers without file descriptors, policies of excessive size."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.labs import AttackLab
from tests.attacks.packets import token


def agent(lab: AttackLab, node: str) -> int:
    """The agent's process: the one that has the agent's socket open."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(lab.lab.run_directory(node) / "agent.sock"))
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], "little")


def verdicts_hold(lab: AttackLab) -> None:
    free, friend, victim = lab.pod("free"), lab.pod("friend"), lab.pod("victim")
    for family in lab.families:
        address = victim.addresses[family]
        assert friend.http(address, "/public/x", seconds=5) == "200"
        assert friend.http(address, "/secret", seconds=5) == "403"
        assert friend.connect(address, 9000).split()[0] == friend.addresses[family]
        assert free.http(address) == "refused"


def test_a_stopped_agent_opens_nothing_and_stops_nobody(lab: AttackLab) -> None:
    process = agent(lab, "node-1")
    os.kill(process, signal.SIGSTOP)
    try:
        verdicts_hold(lab)
    finally:
        os.kill(process, signal.SIGCONT)
    verdicts_hold(lab)


@contextlib.contextmanager
def talkers(path: Path, messages: list[bytes]) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = []
        for message in messages:
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.settimeout(1)
            client.connect(str(path))
            with contextlib.suppress(OSError):  # closed or not read: both are fine
                client.sendall(message)
            made.append(client)
        yield made


GARBAGE = [
    b"\xff" * 100_000, b"\0" * 4, b"\xff\xff\xff\x7f", b"{" * 100_000, b'{"method":', b"\n" * 10_000,
    b'{"method": "observe", "follow": true}\n', b'{"method": []}\n[]\n1\nnull\n',
    b"\x00\x00\x00\x05\x81\xa1a\xc0", b"x",
]  # fmt: skip


@pytest.mark.parametrize("name", ["agent.sock", "link.sock"])
def test_garbage_and_slow_bytes_on_a_socket_of_ours_change_nothing(lab: AttackLab, name: str) -> None:
    path = lab.lab.run_directory("node-1") / name
    assert path.stat().st_mode & 0o077 == 0
    with talkers(path, GARBAGE * 3):
        verdicts_hold(lab)
        began = time.monotonic()
        with lab.applied(json.dumps(deny_everything("garbage", "open"))):
            assert lab.pod("free").http(lab.pod("open").addresses[lab.families[0]]) == "refused"
        assert time.monotonic() - began < 20
    assert lab.status("node-1")["revision"] == lab.status("node-1")["enforced_revision"]


def test_a_worker_without_descriptors_opens_nothing_and_recovers(lab: AttackLab) -> None:
    friend, victim, sent = lab.pod("friend"), lab.pod("victim"), token()
    address = victim.addresses[lab.families[0]]
    worker = int(lab.status("node-1")["workers"][0]["pid"])
    soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{worker}/fd"))  # noqa: PTH208 - numbers, not paths
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 8, hard))
    try:
        with contextlib.ExitStack() as stack, victim.capture() as seen:
            for _ in range(30):
                client = stack.enter_context(friend.open_socket(lab.families[0], seconds=0.2))
                with contextlib.suppress(OSError):
                    client.connect((address, 80))
                    client.sendall(b"GET /secret/%b HTTP/1.1\r\nHost: a\r\n\r\n" % sent)
            assert not seen.arrived(sent)
    finally:
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
    deadline = time.monotonic() + 10
    while (status := friend.http(address, "/public/again")) != "200" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert status == "200"


def deny_everything(name: str, role: str) -> dict[str, object]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": {"role": role}}, "policyTypes": ["Ingress"]},
    }


@pytest.mark.once
@pytest.mark.parametrize("pattern", ["/" + "a" * 1_000_000, "/(" + "a|" * 300_000 + "b)", "/(a{900}){900}"])
def test_a_pattern_without_measure_admits_nothing(lab: AttackLab, pattern: str) -> None:
    """The policy is refused by name, what it covers is denied, and all other traffic is served."""
    policy = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "measureless"},
        "spec": {
            "endpointSelector": {"matchLabels": {"role": "open"}},
            "ingress": [
                {"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"path": pattern}]}}]}
            ],
        },
    }
    with lab.applied(json.dumps(policy)):
        assert lab.pod("free").http(lab.pod("open").addresses[4], "/public") in {"403", "refused"}
        verdicts_hold(lab)
    assert lab.pod("free").http(lab.pod("open").addresses[4], "/public") == "200"
