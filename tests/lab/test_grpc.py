"""gRPC over real packets: grpcio's client in one pod, grpcio's server in another, with a policy for the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import Cluster
from tests.lab.http2_world import LABS, flows, http2_lab, python, until

pytestmark = pytest.mark.lab

pytest.importorskip("grpc")

BEGIN = """
import json, sys, threading, time
import grpc
options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
channel = grpc.insecure_channel("server:50051", options=options)
unary = channel.unary_unary("/echo.Echo/Unary")
def tell(what):
    print(json.dumps(what))
def failing(call):
    try:
        call()
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return ["no error", ""]
"""
KINDS = """
message, call = unary.with_call(b"one", timeout=5, metadata=(("x-key", "value"), ("x-bin-bin", b"\\0\\xff")))
many = list(channel.unary_stream("/echo.Echo/ServerStream")(b"two", timeout=5, metadata=(("x-count", "50"),)))
count = channel.stream_unary("/echo.Echo/ClientStream")((b"abc" for _ in range(50)), timeout=5)
back = list(channel.stream_stream("/echo.Echo/Bidi")((b"%d" % i for i in range(50)), timeout=5))
tell([message.decode(), dict(call.trailing_metadata()), len(many), json.loads(count), [int(x) for x in back]])
"""
PING_PONG = """
import queue
asks = queue.Queue()
call = channel.stream_stream("/echo.Echo/Bidi")(iter(asks.get, None), timeout=10)
seen = []
for number in range(5):  # each message is answered before the next is sent
    asks.put(b"%d" % number)
    seen.append(next(call).decode())
asks.put(None)
tell([seen, list(call), call.code().name])
"""
BIG = """
big = bytes(range(256)) * 40960
same = unary(big, timeout=30) == big
streamed = b"".join(channel.stream_stream("/echo.Echo/Bidi")((big[i::4] for i in range(4)), timeout=30))
tell([same, len(streamed)])
"""
DENIED = """
secret = channel.unary_unary("/echo.Echo/Secret")
stream = channel.stream_stream("/echo.Echo/SecretStream")
first = unary(b"a", timeout=5).decode()
refused = failing(lambda: secret(b"x" * 100000, timeout=5))
streamed = failing(lambda: list(stream((b"x" * 1000 for _ in range(100)), timeout=5)))
tell([first, refused, streamed, unary(b"b", timeout=5).decode()])
"""
ENDS = """
never = threading.Event()
def slowly():
    yield b"first"
    never.wait(20)
late = failing(lambda: list(channel.stream_stream("/echo.Echo/Bidi")(slowly(), timeout=0.5)))
call = channel.stream_stream("/echo.Echo/Bidi")(slowly(), timeout=20)
first = next(call).decode()
call.cancel()
cancelled = failing(lambda: next(call))
asked = failing(lambda: unary(b"", timeout=5, metadata=(("x-fail", "RESOURCE_EXHAUSTED"),)))
unknown = failing(lambda: channel.unary_unary("/echo.Echo/Unary")(b"", timeout=5, metadata=(("x-fail", "INTERNAL"),)))
after = unary(b"after", timeout=5).decode()
never.set()
tell([late[0], first, cancelled[0], asked, unknown, after])
"""
MANY = """
calls = [unary.future(b"%d" % i, timeout=20) for i in range(500)]
tell(sum(int(call.result()) for call in calls))
"""


@pytest.fixture(scope="module", params=LABS)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory: Path = tmp_path_factory.mktemp("grpc")
    with http2_lab(request.param, directory) as cluster:
        yield cluster


@pytest.mark.parametrize("pod", ["client", "far"])
def test_all_four_kinds_of_calls(lab: Cluster, pod: str) -> None:
    message, trailing, many, count, back = python(lab, pod, BEGIN + KINDS)
    assert (message, many, count) == ("one", 50, {"messages": 50, "bytes": 150})
    assert back == list(range(50))
    assert trailing["x-server"] == "server"
    addresses = {flow["IP"]["source"] for flow in flows(lab, "--type", "l7") if flow["source"]["pod_name"] == pod}
    assert trailing["x-peer"] in addresses, "the server sees the client's own address"


def test_messages_pass_one_by_one_in_both_directions(lab: Cluster) -> None:
    assert python(lab, "client", BEGIN + PING_PONG) == [["0", "1", "2", "3", "4"], [], "OK"]


def test_ten_megabytes_pass_unchanged(lab: Cluster) -> None:
    assert python(lab, "client", BEGIN + BIG) == [True, 10 << 20]


def test_a_denied_method_is_permission_denied_and_the_channel_goes_on(lab: Cluster) -> None:
    before = [flow for flow in flows(lab, "--type", "l7") if "Secret" in flow["l7"]["http"]["url"]]
    first, refused, streamed, after = python(lab, "client", BEGIN + DENIED)
    assert (first, after) == ("a", "b")
    assert refused == streamed == ["PERMISSION_DENIED", "Access denied"]
    seen = until(lambda: [f for f in flows(lab, "--type", "l7") if "Secret" in f["l7"]["http"]["url"]], len(before) + 4)
    asked = [flow for flow in seen if flow["l7"]["type"] == "REQUEST"]
    assert {flow["verdict"] for flow in asked} == {"DROPPED"}
    assert {flow["l7"]["http"]["code"] for flow in seen if flow["l7"]["type"] == "RESPONSE"} == {403}


def test_deadlines_cancellation_and_errors_travel(lab: Cluster) -> None:
    late, first, cancelled, asked, unknown, after = python(lab, "client", BEGIN + ENDS)
    assert (late, first, cancelled) == ("DEADLINE_EXCEEDED", "first", "CANCELLED")
    assert asked == ["RESOURCE_EXHAUSTED", "as asked"]
    assert unknown == ["INTERNAL", "as asked"]
    assert after == "after"


def test_five_hundred_calls_at_once_share_one_connection(lab: Cluster) -> None:
    assert python(lab, "client", BEGIN + MANY) == sum(range(500))


def test_a_server_that_does_not_listen_is_unavailable(lab: Cluster) -> None:
    script = BEGIN.replace("50051", "50052") + "tell(failing(lambda: unary(b'', timeout=5)))"
    code, details = python(lab, "client", script)
    assert code == "UNAVAILABLE"
    assert "connection refused" in details
