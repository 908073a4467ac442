"""Sessions on real sockets: requests, refusals, ends of every kind, and policy changes while they are open."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed, Record
from l7proxy.model.endpoint import Backend, Frontend
from l7proxy.model.net import HostPort
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.policy.rules import HttpRule
from tests.unit.proxy.stage import (
    ANYTHING,
    CLIENT,
    NOTHING,
    REF,
    SERVER,
    answer,
    backend,
    by_http,
    echo,
    gets,
    request,
    snapshot,
    stage,
    web,
)


async def test_requests_on_one_connection_are_judged_one_by_one() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        for method, status in (("GET", 200), ("POST", 403), ("GET", 200), ("DELETE", 403)):
            writer.write(request(method, "/x"))
            assert (await answer(reader))[0] == status
        writer.close()
        await on.settled()
        assert on.kinds() == "qsqsqsqs"
        assert on.statuses() == [200, 403, 200, 403]
        assert (on.ctx.counts.requests, on.ctx.counts.denied) == (4, 2)
        first = on.records[0]
        assert isinstance(first, HttpRequest)
        assert (first.conn.source, first.conn.destination, first.conn.destination_port) == (CLIENT, SERVER, server.port)
        assert (first.conn.source_identity, first.conn.destination_identity) == (300, 301)
        assert first.policy_verdict.verdict is Verdict.FORWARDED


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with backend(web) as server, stage(server, snapshot(gets("/a.*"))) as on:
        reader, writer = await on.client()
        writer.write(request(path="/a1") + request(path="/b") + request(path="/a2"))
        assert [await answer(reader) for _ in range(3)] == [
            (200, b"GET /a1 HTTP/1.1"),
            (403, b"Access denied\r\n"),
            (200, b"GET /a2 HTTP/1.1"),
        ]
        writer.close()


async def test_both_directions_are_judged_in_one_pass() -> None:
    async with backend(web) as server, stage(server, snapshot(gets("/(a|b)"), gets("/(b|c)"))) as on:
        reader, writer = await on.client()
        for path, status in (("/a", 403), ("/b", 200), ("/c", 403)):
            writer.write(request(path=path))
            assert (await answer(reader))[0] == status
        writer.close()
        await on.settled()
        directions = [r.policy_verdict.direction for r in on.records if isinstance(r, HttpRequest)]
        assert directions == [Direction.EGRESS, Direction.INGRESS, Direction.INGRESS]


async def test_a_refused_connection_is_reset_with_one_record() -> None:
    async with backend(web) as server, stage(server, snapshot(NOTHING)) as on:
        reader, _ = await on.client()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await on.settled()
        (record,) = on.records
        assert isinstance(record, Connection)
        assert record.policy_verdict.verdict is Verdict.DROPPED
        assert "default/web" in record.policy_verdict.reason
        assert (record.conn.source_identity, record.conn.destination_identity) == (300, 301)


async def test_a_connection_without_http_rules_is_passed_on_whole_and_leaves_no_record() -> None:
    async with backend(echo) as server, stage(server, snapshot(ANYTHING)) as on:
        reader, writer = await on.client()
        writer.write(b"\x00\xffhello")
        assert await reader.readexactly(7) == b"\x00\xffhello"
        writer.write_eof()
        assert await reader.read() == b""
        await on.settled()
        assert on.kinds() == ""


async def test_a_server_that_speaks_first_is_heard() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        await writer.drain()
        await reader.read()

    async with backend(greet) as server, stage(server, snapshot(ANYTHING)) as on:
        reader, writer = await on.client()
        assert await reader.readline() == b"220 hello\r\n"
        writer.close()


async def test_half_close_lets_the_answer_through() -> None:
    async def after_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"got %d" % len(await reader.read()))

    async with backend(after_the_end) as server, stage(server, snapshot(ANYTHING)) as on:
        reader, writer = await on.client()
        writer.write(b"x" * 100_000)
        writer.write_eof()
        assert await reader.read() == b"got 100000"


async def test_a_refused_upstream_is_503_and_a_record() -> None:
    with socket.socket() as unused:
        unused.bind((SERVER, 0))
        server = HostPort(SERVER, unused.getsockname()[1])
        async with stage(server, snapshot(gets())) as on:
            reader, writer = await on.client()
            writer.write(request())
            status, body = await answer(reader)
            assert status == 503
            assert b"connection refused" in body
            assert await reader.read() == b""
            writer.close()
            await on.settled()
            assert on.kinds() == "qs"


async def test_a_server_that_does_not_answer_the_connect_is_503_in_time() -> None:
    with socket.socket() as full:  # a full backlog drops SYNs
        full.bind((SERVER, 0))
        full.listen(0)
        name = full.getsockname()
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(name)
        async with stage(HostPort(*name), snapshot(gets())) as on:
            reader, writer = await on.client()
            writer.write(request())
            await on.until(lambda: on.kinds() == "q")
            on.passes(4)
            assert on.kinds() == "q"
            on.passes(1.5)
            status, body = await answer(reader)
            assert status == 503
            assert b"timed out after 5 s" in body
            writer.close()
            await on.settled()
        for filler in fillers:
            filler.close()


async def test_a_server_that_dies_in_the_middle_resets_the_client() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        await writer.drain()

    async with backend(half) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(request())
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await on.settled()
        assert on.kinds() == "qs"


async def test_a_reset_by_the_server_is_never_a_clean_end() -> None:
    """A response that ends with the connection must not look complete when the connection was reset."""

    async def torn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(0.05)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with backend(torn) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(request())
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await on.settled()
        assert on.kinds() == "qs"


async def test_a_client_that_leaves_before_the_answer_is_recorded_as_499() -> None:
    arrived = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await reader.read()

    async with backend(slow) as server, stage(server, snapshot(gets())) as on:
        sock = await on.dial()
        await asyncio.get_running_loop().sock_sendall(sock, request())
        await arrived.wait()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        await on.settled()
        assert on.kinds() == "qs"
        assert on.statuses() == [499]


async def test_garbage_is_answered_400_and_read_although_more_is_unread() -> None:
    """Closing with unread bytes would reset the connection and destroy the answer."""
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(b"\x80garbage\r\n\r\n")
        writer.write(b"x" * 300_000)
        assert (await answer(reader))[0] == 400
        assert await reader.read() == b""
        writer.close()
        await on.settled()
        assert on.kinds() == "m"


async def test_a_slow_head_ends_in_408_and_its_bytes_do_not_put_that_off() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        await on.until(lambda: len(on.ctx.policy_store) == 1)
        on.passes(100)  # silence before the first byte does not count as a slow head
        for byte in b"GET / HT":
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)
            on.passes(4)
        assert (await answer(reader))[0] == 408
        writer.close()
        await on.settled()
        assert on.kinds() == "m"


async def test_each_request_has_its_own_time_for_its_head() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(b"GET /")
        for _ in range(4):
            await asyncio.sleep(0.02)
            on.passes(20)
            writer.write(b" HTTP/1.1\r\nHost: a\r\n\r\nGET /")  # the rest of one head, the beginning of the next
            assert (await answer(reader))[0] == 200
        on.passes(31)
        assert (await answer(reader))[0] == 408
        writer.close()


async def test_idle_connections_end_quietly_after_an_hour() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(request())
        assert (await answer(reader))[0] == 200
        on.passes(3599)
        writer.write(request())
        assert (await answer(reader))[0] == 200
        on.passes(3599)
        await asyncio.sleep(0.01)
        assert len(on.ctx.policy_store) == 1
        on.passes(2)
        assert await reader.read() == b""
        writer.close()
        await on.settled()
        assert on.kinds() == "qsqs"


async def test_a_client_that_never_reads_our_last_words_is_cut() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        sock = await on.dial()
        await asyncio.get_running_loop().sock_sendall(sock, b"\x80\r\n\r\n")
        await on.until(lambda: on.kinds() == "m")
        assert len(on.ctx.policy_store) == 1
        on.passes(3)
        await on.settled()
        sock.close()


async def test_a_new_policy_bites_at_the_next_request() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(request(path="/a"))
        assert (await answer(reader))[0] == 200
        await on.proxy.publish(snapshot(gets("/b")))
        for path, status in (("/a", 403), ("/b", 200)):
            writer.write(request(path=path))
            assert (await answer(reader))[0] == status
        writer.close()


async def test_identities_are_looked_up_anew() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(request())
        await answer(reader)
        await on.proxy.publish(snapshot(gets(), identities={f"{CLIENT}/32": 777, f"{SERVER}/32": 301}))
        writer.write(request())
        await answer(reader)
        writer.close()
        assert [r.conn.source_identity for r in on.records if isinstance(r, HttpRequest)] == [300, 777]


async def test_a_connection_that_becomes_forbidden_is_reset_on_both_sides() -> None:
    ends: list[bytes | OSError] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ends.append(await reader.read())
        except OSError as error:
            ends.append(error)

    async with backend(listen) as server, stage(server, snapshot(ANYTHING)) as on:
        reader, _ = await on.client()
        await on.until(lambda: len(on.ctx.policy_store) == 1)
        await asyncio.sleep(0.05)
        await on.proxy.publish(snapshot(NOTHING))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await on.settled()
        await on.until(lambda: ends)
        assert isinstance(ends[0], ConnectionResetError)
        assert on.kinds() == "c"
        assert isinstance(on.records[0], Connection)
        assert on.records[0].policy_verdict.verdict is Verdict.DROPPED


async def test_what_is_under_way_when_a_connection_becomes_forbidden_gets_its_record() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with backend(slow) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(request())
        await on.until(lambda: on.kinds() == "q")
        await on.proxy.publish(snapshot(NOTHING))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await on.settled()
        assert on.kinds() == "qcs"
        assert "connection closed (policy changed: no rule of" in on.records[2].policy_verdict.reason


async def test_a_download_that_becomes_forbidden_is_reset_on_both_sides() -> None:
    """It is spliced by then: its bytes bypass the gate."""
    ends: list[OSError] = []

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        try:
            while True:
                writer.write(bytes(1 << 18))
                await writer.drain()
        except OSError as error:
            ends.append(error)

    async with backend(pour) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(request())
        await reader.readexactly(8 << 20)
        await on.proxy.publish(snapshot(gets("/other")))
        with pytest.raises(ConnectionResetError):
            while await reader.read(1 << 20):
                pass
        await on.settled()
        await on.until(lambda: ends)
        assert on.kinds() == "qsc"
        assert on.records[2].policy_verdict.verdict is Verdict.DROPPED
        assert on.records[2].policy_verdict.reason.startswith("policy changed: no rule matched; nearest: ")


async def test_an_upload_that_becomes_forbidden_is_answered_and_reset_at_the_server() -> None:
    ends: list[bytes | OSError] = []

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1 << 20):
                pass
            ends.append(b"")
        except OSError as error:
            ends.append(error)

    posts = snapshot(by_http(HttpRule(REF, method="POST", path="/.*")))
    async with backend(sink) as server, stage(server, posts) as on:
        reader, writer = await on.client()
        writer.write(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000000\r\n\r\n" + bytes(1 << 20))
        await writer.drain()
        await on.until(lambda: on.kinds() == "q")
        await on.proxy.publish(snapshot(gets()))
        assert (await reader.readline()) == b"HTTP/1.1 403 Forbidden\r\n"
        await on.until(lambda: ends)
        assert isinstance(ends[0], ConnectionResetError)
        assert on.kinds() == "qsc"
        writer.close()


async def test_an_open_plain_connection_ends_when_requests_must_be_judged() -> None:
    async with backend(echo) as server, stage(server, snapshot(ANYTHING)) as on:
        reader, writer = await on.client()
        writer.write(b"hi")
        assert await reader.readexactly(2) == b"hi"
        await on.proxy.publish(snapshot(gets()))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await on.settled()
        assert on.kinds() == "c"


async def test_a_connection_that_is_still_allowed_lives_through_a_new_snapshot() -> None:
    async with backend(echo) as server, stage(server, snapshot(ANYTHING)) as on:
        reader, writer = await on.client()
        for word in (b"one", b"two"):
            writer.write(word)
            assert await reader.readexactly(3) == word
            await on.proxy.publish(snapshot(ANYTHING))
        writer.close()
        await on.settled()
        assert on.kinds() == ""


@pytest.mark.parametrize("policy", [ANYTHING, gets()], ids=["plain", "http"])
async def test_dialling_the_proxy_itself_is_refused(policy: object) -> None:
    assert policy is ANYTHING or policy == gets()
    async with stage(HostPort("127.0.0.1", 1), snapshot(ANYTHING)) as on:
        on.ctx.own.add(HostPort("127.0.0.1", 1))
        reader, _ = await on.client()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await on.settled()
        assert "proxy itself" in on.records[0].policy_verdict.reason


async def test_the_proxys_port_on_an_address_of_the_node_is_refused() -> None:
    async with stage(HostPort("192.0.2.1", 9), snapshot(ANYTHING, node_addresses=("192.0.2.1",))) as on:
        on.ctx.own.add(HostPort("127.0.0.1", 9))
        reader, _ = await on.client()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await on.settled()
        assert "proxy itself" in on.records[0].policy_verdict.reason


async def test_a_service_is_resolved_and_its_backend_is_judged_and_recorded() -> None:
    async with backend(web) as server:
        service = Frontend("default", "web", "192.0.2.10", 80, 6, (Backend(SERVER, server.port),))
        async with stage(HostPort("192.0.2.10", 80), snapshot(gets(), frontends=(service,))) as on:
            reader, writer = await on.client()
            for method, status in (("GET", 200), ("POST", 403)):
                writer.write(request(method))
                assert (await answer(reader))[0] == status
            writer.close()
            await on.settled()
            assert on.kinds() == "cqsqs"
            first = on.records[0]
            assert isinstance(first, Connection)
            assert first.policy_verdict.verdict is Verdict.REDIRECTED
            assert (first.conn.destination, first.conn.destination_port) == (SERVER, server.port)


async def test_with_services_known_a_pods_own_address_is_the_kernels_to_tell() -> None:
    async with backend(web) as server:
        service = Frontend("default", "web", "192.0.2.10", 80, 6, (Backend(SERVER, server.port),))
        async with stage(server, snapshot(gets(), frontends=(service,))) as on:
            reader, writer = await on.client()
            writer.write(request())
            assert (await answer(reader))[0] == 200
            writer.close()
            await on.settled()
            assert on.kinds() == "qs"


async def test_a_service_between_ends_without_policy_leaves_no_record() -> None:
    async with backend(echo) as server:
        service = Frontend("default", "web", "192.0.2.10", 80, 6, (Backend(SERVER, server.port),))
        async with stage(HostPort("192.0.2.10", 80), snapshot(frontends=(service,))) as on:
            reader, writer = await on.client()
            writer.write(b"hi")
            assert await reader.readexactly(2) == b"hi"
            writer.close()
            await on.settled()
            assert on.kinds() == ""


async def test_a_service_without_backends_is_refused_by_name() -> None:
    service = Frontend("default", "web", "192.0.2.10", 80, 6)
    async with stage(HostPort("192.0.2.10", 80), snapshot(gets(), frontends=(service,))) as on:
        reader, _ = await on.client()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert "default/web has no backends" in on.records[0].policy_verdict.reason


async def test_over_the_limit_is_refused_and_room_comes_back() -> None:
    async with backend(web) as server, stage(server, snapshot(gets()), limit=1) as on:
        reader, writer = await on.client()
        writer.write(request())
        assert (await answer(reader))[0] == 200
        with pytest.raises(ConnectionResetError):
            second, _ = await on.client()
            await second.read()
        writer.close()
        await on.settled()
        third, writer = await on.client()
        writer.write(request())
        assert (await answer(third))[0] == 200
        writer.close()


async def test_one_client_cannot_take_all_connections() -> None:
    async with backend(web) as server, stage(server, snapshot(gets()), limit=4) as on:
        for _ in range(2):
            reader, writer = await on.client()
            writer.write(request())
            assert (await answer(reader))[0] == 200
        with pytest.raises(ConnectionResetError):
            third, _ = await on.client()
            await third.read()
        assert "this client has half" in on.records[-1].policy_verdict.reason
        other, writer = await on.client("127.0.0.9")
        writer.write(request())
        assert (await answer(other))[0] == 200
        for each in on.writers:
            each.close()
        await on.settled()
        assert on.ctx.shares.sessions == 0


async def test_a_fault_in_a_session_ends_it_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        keep = on.records.append

        def picky(record: Record) -> None:
            if isinstance(record, HttpRequest) and record.url.endswith("/bad"):
                raise RuntimeError("a bug")
            keep(record)

        on.ctx.records = picky
        good, good_writer = await on.client()
        bad, bad_writer = await on.client()
        bad_writer.write(request(path="/bad"))
        with pytest.raises(ConnectionResetError):
            await bad.read()
        good_writer.write(request())
        assert (await answer(good))[0] == 200
        assert on.ctx.counts.errors == 1
        assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1
        assert on.kinds() == "cqs"
        assert on.records[0].policy_verdict.verdict is Verdict.ERROR
        assert "a bug" in on.records[0].policy_verdict.reason


async def test_malformed_after_good_requests_is_one_record_more() -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on:
        reader, writer = await on.client()
        writer.write(request() + b"GET / HTTP/1.1\r\nHost : a\r\n\r\n")
        assert (await answer(reader))[0] == 200
        assert (await answer(reader))[0] == 400
        writer.close()
        await on.settled()
        assert on.kinds() == "qsm"
        assert isinstance(on.records[-1], Malformed)


async def test_a_reset_of_the_client_while_connecting_leaves_nothing() -> None:
    with socket.socket() as full:
        full.bind((SERVER, 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        async with stage(HostPort(*full.getsockname()), snapshot(gets())) as on:
            sock = await on.dial()
            await asyncio.get_running_loop().sock_sendall(sock, request())
            await on.until(lambda: on.kinds() == "q")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            await on.settled()
            assert on.kinds() == "qs"
            assert isinstance(on.records[1], HttpResponse)
            assert len(on.ctx.timers) == 0
        for filler in fillers:
            filler.close()
