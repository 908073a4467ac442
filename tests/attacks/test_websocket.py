"""WebSocket frames split and merged in unusual ways: before the answer, across it, across a deny."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from tests.attacks.labs import AttackLab, Capture, Pod
from tests.attacks.packets import token

pytestmark = pytest.mark.once
DENY = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumNetworkPolicy",
    "metadata": {"name": "victim-deny"},
    "spec": {
        "endpointSelector": {"matchLabels": {"role": "victim"}},
        "ingressDeny": [{"fromEndpoints": [{"matchLabels": {"role": "friend"}}]}],
    },
}
TEXT, MORE, PING = 1, 0, 9
CUTS = {"at once": 1 << 16, "byte by byte": 1, "in threes": 3}


def handshake(path: str, protocol: str = "websocket") -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def frame(payload: bytes, opcode: int = TEXT, *, last: bool = True) -> bytes:
    """A client frame: masked, with a mask that changes nothing (RFC 6455, 5.2)."""
    return bytes((last << 7 | opcode, 0x80 | len(payload))) + bytes(4) + payload


def in_fragments(payload: bytes) -> bytes:
    """A message in three frames, with a ping between them."""
    first, then, rest = payload[:5], payload[5:9], payload[9:]
    ping = frame(b"GET /secret HTTP/1.1", PING)
    return frame(first, last=False) + frame(then, MORE, last=False) + ping + frame(rest, MORE)


def received(client: socket.socket, wanted: bytes = b"no such bytes") -> bytes:
    """The received bytes, until the expected ones are there or no more come."""
    got = b""
    with contextlib.suppress(OSError):
        while wanted not in got and (data := client.recv(65536)):
            got += data
    return got


@contextlib.contextmanager
def dialled(lab: AttackLab, victim: Pod) -> Iterator[socket.socket]:
    with lab.pod("friend").open_socket(lab.families[0], seconds=2) as client:
        client.connect((victim.addresses[lab.families[0]], 80))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


def send(client: socket.socket, data: bytes, size: int) -> None:
    for start in range(0, len(data), size):
        with contextlib.suppress(ConnectionError):  # refused meanwhile
            client.sendall(data[start : start + size])


def stream(seen: Capture) -> bytes:
    """The TCP payload that reached the victim, however it was segmented."""
    packets = (Ether(one) for one in seen.packets())
    return b"".join(bytes(packet[TCP].payload) for packet in packets if TCP in packet)


@pytest.mark.parametrize("size", CUTS.values(), ids=CUTS.keys())
def test_frames_pass_with_the_request_that_is_allowed_and_not_with_another(lab: AttackLab, size: int) -> None:
    victim = lab.pod("victim")
    for path, may in (("/public/x", True), ("/secret", False)):
        sent, whole = token(), token()
        with victim.capture() as seen, dialled(lab, victim) as client:
            send(client, handshake(path) + frame(sent) + in_fragments(whole), size)
            answer = received(client, whole[9:] if may else b"no such bytes")
            assert answer.split(b" ")[1] == (b"101" if may else b"403")
            assert (sent in answer) == may
            arrived = stream(seen)
            assert (sent in arrived) == may
            assert may or b"GET" not in arrived


@pytest.mark.parametrize("size", CUTS.values(), ids=CUTS.keys())
def test_frames_to_a_server_that_takes_no_upgrade_do_not_arrive(lab: AttackLab, size: int) -> None:
    victim, sent = lab.pod("victim"), token()
    with victim.capture() as seen, dialled(lab, victim) as client:
        send(client, handshake("/public/x", "irc") + frame(sent) + in_fragments(sent), size)
        assert received(client).split(b" ")[1] == b"200"
        arrived = stream(seen)
        assert b"GET /public/x" in arrived
        assert sent not in arrived


def test_the_second_half_of_a_frame_does_not_arrive_after_a_deny(lab: AttackLab) -> None:
    victim, before, after = lab.pod("victim"), token(), token()
    with victim.capture() as seen, dialled(lab, victim) as client:
        client.sendall(handshake("/public/x") + frame(before))
        assert before in received(client, before)
        late = frame(before + after)
        client.sendall(late[: -len(after)])
        with lab.applied(json.dumps(DENY)):
            send(client, after, 1 << 16)
            assert received(client) == b""
            assert not seen.arrived(after)
