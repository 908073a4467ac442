"""Finding 3: bytes that cost a worker far more than the sender are refused. This tests which, and the reasons.

The bench, not a test, measures the cost of the inputs of bench/hostile.py.
"""

from __future__ import annotations

import json
import time

import pytest

from l7proxy.wire import http2_frames as frames
from tests.attacks.labs import AttackLab

HEAD = b"GET %b HTTP/1.1\r\nHost: victim\r\n%b\r\n"

TOO_MUCH = {
    "a path of escapes": (HEAD % (b"/public" + b"%C3%A9" * 2_000, b""), 414, "the path is longer than 8192 bytes"),
    "a query": (HEAD % (b"/public?" + b"q" * 40_000, b""), 414, "the request target is longer than 32768 bytes"),
    "Upgrade": (
        HEAD % (b"/public", b"Connection: upgrade\r\nUpgrade: " + b"h2c," * 10_000 + b"h2c\r\n"),
        431,
        "Upgrade lists more than 64 items",
    ),
    "Connection": (
        HEAD % (b"/public", b"Connection: " + b"a," * 20_000 + b"a\r\n"),
        431,
        "Connection lists more than 64 items",
    ),
    "small headers": (HEAD % (b"/public", b"a:\r\n" * 300), 431, "more than 256 headers"),
    "headers together": (
        HEAD % (b"/public", b"a: " + b"b" * 70_000 + b"\r\n"),
        431,
        "the head is longer than 65536 bytes",
    ),
}


def told(lab: AttackLab, since: int, reason: str) -> bool:
    """A DROPPED flow has this reason."""
    return bool(lab.flow("node-1", since, lambda flow: flow.get("verdict") == "DROPPED" and reason in json.dumps(flow)))


@pytest.mark.once
@pytest.mark.parametrize("what", TOO_MUCH)
def test_what_is_too_long_is_refused_with_the_limit_it_passes(lab: AttackLab, what: str) -> None:
    data, status, reason = TOO_MUCH[what]
    since = time.time_ns()
    answer = lab.pod("friend").connect(lab.pod("victim").addresses[4], 80, data, seconds=5)
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert told(lab, since, reason)


@pytest.mark.once
def test_blanks_in_a_header_do_not_stop_the_worker(lab: AttackLab) -> None:
    """With quadratic parsing 60 KB of them take 27 s of a worker, while all other clients wait."""
    friend, victim = lab.pod("friend"), lab.pod("victim").addresses[4]
    with friend.open_socket(4) as attacker:
        attacker.connect((victim, 80))
        attacker.sendall(HEAD % (b"/public", b"a: b" + b" " * 60_000 + b"\xe9\r\n"))
        assert friend.http(victim, seconds=5) == "200"


def received(lab: AttackLab, blocks: list[bytes]) -> bytes:
    """What an HTTP/2 client receives for these requests, sent one by one until the connection ends or all are read.

    To leave before the answer to a PING would reset the connection, with requests that the worker has not read yet.
    """
    got = bytearray()
    with lab.pod("friend").open_socket(4, seconds=5) as client:
        client.connect((lab.pod("victim").addresses[4], 80))
        client.sendall(frames.PREFACE + frames.settings([]))
        try:
            for number, block in enumerate(blocks):
                client.sendall(frames.headers(2 * number + 1, block, end=True))
                if number % 20 == 0 or number == len(blocks) - 1:
                    client.sendall(frames.frame(frames.PING, 0, 0, b"%08d" % number))
                    while b"%08d" % number not in got:
                        data = client.recv(65536)
                        if not data:
                            return bytes(got)
                        got += data
        except OSError:
            pass
    return bytes(got)


@pytest.mark.once
def test_denied_http2_requests_spend_a_budget(lab: AttackLab) -> None:
    since = time.time_ns()
    denied = b"\x82\x86\x04\x07/secret\x01\x06victim"
    answer = received(lab, [denied] * 5_000)
    assert b"too many frames without progress, the last: a denied request" in answer
    assert told(lab, since, "a denied request")


@pytest.mark.once
def test_entries_of_hpack_said_again_and_again_are_refused(lab: AttackLab) -> None:
    """The first request is denied: an allowed one would open a connection to the server, whose end ends this one."""
    since = time.time_ns()
    line = b"\x82\x86\x04\x07/secret\x01\x06victim"
    stored = b"\x40\x01x\x7f\xb9\x16" + b"y" * 3_000
    received(lab, [line + stored, line + b"\xbe" * 20])
    assert told(lab, since, "the headers expand to many times their compressed size")
