"""The laws of the HTTP/1 gate over any conversation: bytes in any splits, ends and failures in any order.

Two independent readers check the result: h11 as the server reads what was forwarded, h11 as the client reads
what was answered.
"""

from __future__ import annotations

from collections.abc import Iterator

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed
from l7proxy.gate.actions import Phase
from l7proxy.gate.options import HttpOptions
from l7proxy.model.verdict import Verdict
from l7proxy.wire.path import PathRules
from tests.unit.gate.talk import DENIED, DENY, GET, OK, Talk, all_but_deny
from tests.unit.wire import mutants

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
REQUESTS = [
    GET,
    DENY,
    b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\n" + GET,
    b"POST /deny HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\n" + GET,
    b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    b"POST /deny HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: h\r\n" + CHUNKED + b"1c;a\r\n" + GET + b"\r\n0\r\nA: b\r\n\r\n",
    b"POST /deny HTTP/1.1\r\nHost: h\r\n" + CHUNKED + b"1c\r\n" + GET + b"\r\n0\r\n\r\n",
    b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n",
    b"HEAD /deny HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /x/..//deny HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /x/../a HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /x%2Fy HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"GET /deny HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
    b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n",
    b"CONNECT deny:443 HTTP/1.1\r\nHost: deny:443\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET /a HTTP/1.0\r\n\r\n",
    b"\r\n",
]
RESPONSES = [
    OK,
    OK,
    b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil close",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"HTTP/1.1 200 Connection established\r\n\r\n",
    b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    OK + OK,
]


@st.composite
def client_bytes(draw: st.DrawFn) -> bytes:
    parts = draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=4))
    if not draw(st.integers(0, 5)):
        parts.append(mutants.request(lambda below: draw(st.integers(0, below - 1))))
    return _cut(draw, b"".join(parts))


@st.composite
def server_bytes(draw: st.DrawFn) -> bytes:
    if not draw(st.integers(0, 7)):
        return mutants.response(lambda below: draw(st.integers(0, below - 1)))
    return _cut(draw, draw(st.sampled_from(RESPONSES)))


def _cut(draw: st.DrawFn, data: bytes) -> bytes:
    return data if draw(st.integers(0, 4)) else data[: draw(st.integers(1, len(data)))]


STEPS = st.one_of(
    st.tuples(st.just("client"), client_bytes()),
    st.tuples(st.just("server"), server_bytes()),
    st.tuples(
        st.sampled_from(
            ["connected", "connected", "client_eof", "server_eof", "failed", "timed_out", "client_lost", "policy"]
        ),
        st.just(b""),
    ),
)


def hold(talk: Talk, steps: list[tuple[str, bytes]]) -> tuple[bytes, bytes]:
    """Runs the whole conversation, to its end. Returns what the server (until a tunnel opens) and the client got."""
    server, client = b"", b""
    for what, data in [*steps, ("client_lost", b"")]:
        if talk.gate.waiting_for is Phase.CLOSED:
            break
        if what == "client":
            talk.client(data)
        elif what == "client_eof":
            talk.client_eof()
        elif what == "timed_out":
            talk.timed_out()
        elif what == "client_lost":
            talk.client_lost()
        elif what == "policy":
            change_policy(talk)
        elif talk.connects:
            if what == "server":
                talk.server(data)
            elif what == "connected":
                talk.connected()
            elif what == "server_eof":
                talk.server_eof()
            else:
                talk.upstream_failed("reset")
        seen = talk.take()
        client += seen.client
        server += seen.server if not tunnelled(talk) else b""
    return server, client


def change_policy(talk: Talk) -> None:
    """Denies everything from now on: a request in progress ends with one record of that, all else goes on."""
    open_tunnel, asked, before = talk.gate.waiting_for is Phase.TUNNEL, len(talk.asked), len(talk.records)
    talk.judge = lambda request: DENIED
    talk.policy_changed()
    again = len(talk.asked) - asked
    assert again == 1 or (again == 0 and not open_tunnel)
    del talk.asked[asked:]
    kinds = [type(record) for record in talk.records[before:]]
    assert kinds in ([HttpResponse, Connection], [Connection]) if again else not kinds
    assert talk.gate.waiting_for is Phase.CLOSED or not again
    if again:
        talk.records.pop()


def tunnelled(talk: Talk) -> bool:
    return any(isinstance(record, HttpResponse) and opens(record) for record in talk.records)


def opens(record: HttpResponse) -> bool:
    return record.status == 101 or (record.method == "CONNECT" and 200 <= record.status < 300)


def pieces(cuts: list[int], data: bytes) -> Iterator[bytes]:
    """Pieces of `data`, with the lengths `cuts` repeated."""
    at, turn = 0, 0
    while at < len(data):
        step = cuts[turn % len(cuts)]
        yield data[at : at + step]
        at += step
        turn += 1


def read_as_server(data: bytes) -> list[tuple[str, str]]:
    found = []
    while data:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        connection.receive_data(data)
        event = connection.next_event()
        if not isinstance(event, h11.Request):
            break
        found.append((event.method.decode(), event.target.decode()))
        data = _rest(connection)
    return found


def read_as_client(data: bytes, methods: list[str]) -> list[int]:
    """The final statuses that a client sees after requests with `methods`."""
    found: list[int] = []
    for method in [*methods, "GET"]:  # a malformed request is answered too
        if not data:
            break
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        upgrade = [("host", "h"), ("connection", "upgrade"), ("upgrade", "any")]
        connection.send(h11.Request(method=method, target="/", headers=upgrade))
        connection.receive_data(data)
        event = connection.next_event()
        while isinstance(event, h11.InformationalResponse) and event.status_code != 101:
            event = connection.next_event()
        if event is h11.NEED_DATA:
            assert not connection.trailing_data[0], "no half head is ever shown"
            return found
        assert isinstance(event, h11.Response | h11.InformationalResponse)
        found.append(event.status_code)
        tunnel = event.status_code == 101 or (method == "CONNECT" and event.status_code < 300)
        data = b"" if tunnel else _rest(connection)
    assert not data, "more was answered than asked"
    return found


def _rest(connection: h11.Connection) -> bytes:
    """The bytes after the message whose head has been read; empty if the message has not ended."""
    event = connection.next_event()
    while isinstance(event, h11.Data):
        event = connection.next_event()
    return connection.trailing_data[0] if isinstance(event, h11.EndOfMessage) else b""


@settings(max_examples=600, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=8), st.lists(st.integers(1, 90), min_size=1, max_size=4), st.booleans())
def test_laws(steps: list[tuple[str, bytes]], cuts: list[int], connect: bool) -> None:
    talk = Talk(lambda data: pieces(cuts, data))
    talk.options = HttpOptions(paths=PathRules(allow_connect=connect))
    talk.judge = lambda request: DENIED if request.host.startswith(b"deny") else all_but_deny(request)
    server, client = hold(talk, steps)
    assert talk.gate.waiting_for is Phase.CLOSED

    requests = [record for record in talk.records if isinstance(record, HttpRequest)]
    responses = [record for record in talk.records if isinstance(record, HttpResponse)]
    malformed = [record for record in talk.records if isinstance(record, Malformed)]

    # law 1: each request is evaluated once
    assert len(requests) == len(talk.asked)
    # law 2: an independent server reads exactly the allowed requests, as they were evaluated
    allowed = [
        (asked.method.decode(), (asked.path or asked.host).decode())
        for asked, record in zip(talk.asked, requests, strict=True)
        if record.policy_verdict.verdict is Verdict.FORWARDED
    ]
    origin_form = [(method, "/" + target.partition("://")[2].partition("/")[2] if "://" in target else target)
                   for method, target in read_as_server(server)]  # fmt: skip
    assert origin_form == allowed
    # law 3: one response record for each request, in order, and at most one malformed, at the end
    pairs = [type(record) for record in talk.records if not isinstance(record, Malformed)]
    assert pairs == [HttpRequest, HttpResponse] * len(requests)
    assert len(malformed) <= 1
    assert not malformed or talk.records[-1] is malformed[0]
    # and the client saw what the records state
    statuses = [record.status for record in responses] + [record.status for record in malformed]
    told = [status for status in statuses if status != 499]
    if responses and "can retry" in responses[-1].policy_verdict.reason and talk.records[-1] is responses[-1]:
        told.pop()  # a server that ends a connection in use: the client may retry
    shown = read_as_client(client, [record.method for record in requests])
    assert shown == told or (steps_end_lost(talk) and shown == told[:-1])


def steps_end_lost(talk: Talk) -> bool:
    """A client that left inside a head leaves a Malformed record and gets no answer."""
    last = talk.records[-1]
    return isinstance(last, Malformed) and "closed the connection" in last.policy_verdict.reason
