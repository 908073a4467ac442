"""Known incidents of other proxies, one test each: interpretation of requests, framing, smuggling, upgrades."""

from __future__ import annotations

import pytest

from l7proxy.gate.options import HttpOptions
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from tests.unit.gate.talk import ALLOWED, DENIED, DENY, FORBIDDEN, GET, OK, Talk

CHUNKED = b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED_OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"


def asking(path: bytes, *headers: bytes, host: bytes = b"h") -> bytes:
    return b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"Host: " + host, *headers, b"", b""])


# --- interpretation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [b"//deny", b"/./deny", b"/a/../deny", b"/a/%2e%2e/deny", b"/a\\..\\deny", b"/.//deny", b"/%64%65ny"]
)
def test_cve_2021_31920_cve_2021_29492_disguised_paths_are_judged_plain(talk: Talk, path: bytes) -> None:
    talk.client(asking(path))
    talk.expect(client=FORBIDDEN, records=("DROPPED GET http://h/deny", "403 GET http://h/deny"))


@pytest.mark.parametrize(
    "path", [b"/a%2F..%2Fdeny", b"/a%2f..%2fdeny", b"/a%5C..%5Cdeny", b"/%2Fdeny", b"/a/%2e%2e%2Fdeny"]
)
def test_cve_2021_31920_cve_2021_29492_escaped_slashes_are_never_forwarded(talk: Talk, path: bytes) -> None:
    talk.client(asking(path))
    seen = talk.take()
    assert b"\r\nlocation: /deny\r\n" in seen.client
    assert (seen.server, seen.end) == (b"", "close")


def test_ghsa_3q34_rx83_r6mq_a_double_escape_is_forwarded_as_it_is_judged(talk: Talk) -> None:
    talk.client(asking(b"/%2564eny/%252e%252e"))
    assert talk.asked[0].path == b"/%2564eny/%252e%252e"
    talk.expect(server=asking(b"/%2564eny/%252e%252e"), records=("FORWARDED GET http://h/%2564eny/%252e%252e",))


@pytest.mark.parametrize("path", [b"/a#deny", b"/a?x#y", b"#"])
def test_cve_2021_39156_fragments_are_refused(talk: Talk, path: bytes) -> None:
    talk.client(asking(path))
    assert not talk.asked
    assert talk.take().records == ["malformed 400"]


@pytest.mark.parametrize("host", [b"EXAMPLE.com", b"example.com.", b"example.com:8080", b"[FD00::1]:80"])
def test_cve_2021_39155_the_host_is_judged_as_it_is_forwarded(talk: Talk, host: bytes) -> None:
    talk.client(asking(b"/a", host=host))
    assert talk.asked[0].host == host
    assert talk.take().server == asking(b"/a", host=host)


@pytest.mark.parametrize(
    "host", [b"allowed@h", b"h/deny", b"h, other", b"h\\other", b"h other", b"h#other", b"h?other"]
)
def test_cve_2021_39155_hosts_that_name_two_are_refused(talk: Talk, host: bytes) -> None:
    talk.client(asking(b"/a", host=host))
    talk.expect_refusal(400, "Host")


@pytest.mark.parametrize(
    "path", [b"/admin;x", b"/a;y/admin", b"/a/..;/admin", b"/admin%3Bx", b"/admin%3bx", b"/;/admin"]
)
def test_cve_2026_73511_cve_2026_73553_cve_2026_39852_cve_2026_50559_matrix_parameters(talk: Talk, path: bytes) -> None:
    talk.client(asking(path))
    talk.expect_refusal(400, "matrix")


def test_cve_2026_73552_bytes_past_ascii_in_a_header_are_judged_as_they_are_forwarded(talk: Talk) -> None:
    """Policy sees the exact bytes, whatever the regex engine makes of them; without an allow it refuses."""
    talk.judge = lambda request: ALLOWED if request.joined(b"x-token") == b"good" else DENIED
    talk.client(asking(b"/a", b"X-Token: good\xff"))
    assert talk.asked[0].joined(b"x-token") == b"good\xff"
    talk.expect(client=FORBIDDEN, records=("DROPPED GET http://h/a", "403 GET http://h/a"))


@pytest.mark.parametrize(
    "headers", [(b"X-Role: user", b"X-Role: admin"), (b"X-Role: admin", b"x-role: user"), (b"X-Role: user,admin",)]
)
def test_cve_2020_25017_ghsa_2v25_cjjq_5f4w_cve_2026_26308_all_repeats_are_judged(
    talk: Talk, headers: tuple[bytes, ...]
) -> None:
    talk.judge = lambda request: ALLOWED if request.joined(b"x-role") == b"user" else DENIED
    talk.client(asking(b"/a", *headers))
    talk.expect(client=FORBIDDEN, records=("DROPPED GET http://h/a", "403 GET http://h/a"))


def test_cve_2025_46821_every_path_character_reaches_the_judge(talk: Talk) -> None:
    path = b"/a*b/-._~!$&'()+,=:@/%20%C3%A9/*"
    talk.client(asking(path))
    assert [request.path for request in talk.asked] == [path]


@pytest.mark.parametrize("byte", [bytes((code,)) for code in (*range(0x20), 0x7F) if code not in b"\t"])
def test_cve_2023_27491_control_bytes_never_pass(byte: bytes) -> None:
    for message in (
        asking(b"/a" + byte + b"b"),
        asking(b"/a", b"X: a" + byte + b"b"),
        asking(b"/a", b"X" + byte + b": a"),
    ):
        talk = Talk(lambda data: [data])
        talk.client(message)
        seen = talk.take()
        assert (seen.server, seen.records, seen.end) == (b"", ["malformed 400"], "close")


def test_cve_2023_27493_ghsa_w5w5_487h_qv8q_no_value_can_break_out_of_our_header(talk: Talk) -> None:
    talk.options = HttpOptions(deny_header=True)
    talk.judge = lambda request: PolicyVerdict(
        Verdict.DROPPED, Direction.INGRESS, reason="no\r\nset-cookie: x\r\n\r\n\x00é"
    )
    talk.client(DENY)
    head = talk.take().client.partition(b"\r\n\r\n")[0]
    assert head.endswith(b"x-l7proxy-denied: no??set-cookie: x??????")


# --- framing and smuggling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"XX", b"\n\n", b"\r\r", b"\n", b"0\r"])
def test_cve_2025_43859_ghsa_vqfr_h8mv_ghfj_nothing_but_crlf_ends_a_chunk(talk: Talk, end: bytes) -> None:
    """As in the advisory: two bytes skipped after a chunk make one reader see a request in the other's body."""
    talk.client(CHUNKED + b"5\r\nAAAAA" + end + b"2\r\n45\r\n0\r\n\r\n" + DENY)
    seen = talk.take()
    assert seen.records == ["FORWARDED POST http://h/a", "400 POST http://h/a"]
    assert b"deny" not in seen.server
    assert seen.end == "close"


def test_cve_2021_39214_a_request_in_a_body_is_a_body(talk: Talk) -> None:
    """The server gets as many requests as were evaluated: the body is framed once, for both."""
    post = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 31\r\n\r\n" + DENY
    talk.client(post + GET)
    talk.expect(server=post, records=("FORWARDED POST http://h/a",))
    assert len(talk.asked) == 1


FRAMINGS = {
    "both": b"Content-Length: 4\r\nTransfer-Encoding: chunked",
    "duplicate": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "exactly": b"Transfer-Encoding: chunked, identity",
    "must be exactly": b"Transfer-Encoding: xchunked",
    "exactly `chunked`": b"Transfer-Encoding: gzip, chunked",
}


@pytest.mark.parametrize("why", FRAMINGS)
def test_cve_2024_1135_cve_2024_6827_two_framings_are_refused(talk: Talk, why: str) -> None:
    talk.client(b"POST /a HTTP/1.1\r\nHost: h\r\n" + FRAMINGS[why] + b"\r\n\r\n0\r\n\r\n" + DENY)
    talk.expect_refusal(400, why)


def test_cve_2024_1135_a_coding_in_http_10_is_refused(talk: Talk) -> None:
    talk.client(CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n")
    talk.expect_refusal(400, "HTTP/1.0")


@pytest.mark.parametrize("coding", [b"Chunked", b"CHUNKED", b"chunkeD"])
def test_cve_2026_31842_the_server_sees_the_canonical_coding_only(talk: Talk, coding: bytes) -> None:
    talk.client(CHUNKED.replace(b"chunked", coding) + b"0\r\n\r\n" + DENY)
    talk.expect(server=CHUNKED + b"0\r\n\r\n", records=("FORWARDED POST http://h/a",))
    talk.server(CHUNKED_OK.replace(b"chunked", coding))
    assert talk.take().client == CHUNKED_OK + FORBIDDEN


NOT_CHUNKED = [b"\x0bChunked", b"Chunked\x0b", b"Chunked\x00", b"\tChunked", b"Chunked\t", b"Chunked\r\n ", b"Chun ked"]
NOT_CHUNKED += [b"Chunked,", b",CHUNKED", b"Chunked, chunked", b"Chunked;q=1", b'"Chunked"', b"CHUN\xe2\x84\xaaED"]


@pytest.mark.parametrize("coding", NOT_CHUNKED)
def test_cve_2026_31842_spellings_of_chunked_never_lead_to_a_raw_relay(talk: Talk, coding: bytes) -> None:
    talk.client(CHUNKED.replace(b"chunked", coding) + b"0\r\n\r\n" + DENY)
    assert talk.take().records == ["malformed 400"]
    assert not talk.asked


@pytest.mark.parametrize("number", [b"+5", b"0x5", b"5 5", b"1_0", b"-5", b"5.", b"\xd9\xa5", b"05", b"9" * 30])
def test_cve_2023_38697_lengths_are_plain_decimal(talk: Talk, number: bytes) -> None:
    talk.client(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: " + number + b"\r\n\r\nhello")
    talk.expect_refusal(400, "Content-Length")


@pytest.mark.parametrize("size", [b"+5", b"0x5", b" 5", b"5 ", b"1_0", b"-5", b"", b"f" * 17, b"5;a\nb", b"5;\nX"])
def test_cve_2023_38697_chunk_sizes_are_plain_hex(talk: Talk, size: bytes) -> None:
    talk.client(CHUNKED + size + b"\r\nhello\r\n0\r\n\r\n")
    seen = talk.take()
    assert (seen.records[-1], seen.end) == ("400 POST http://h/a", "close")


def test_ghsa_vxq7_64xx_v4gw_a_chunk_size_line_without_end_is_cut(talk: Talk) -> None:
    talk.client(CHUNKED + b"1;" + b"a" * 400)
    assert talk.take().end == "close"


@pytest.mark.parametrize("first", [GET, DENY])
@pytest.mark.parametrize("second", [GET, DENY])
def test_smuggling_by_pipelining_the_verdict_of_one_request_is_never_that_of_another(
    talk: Talk, first: bytes, second: bytes
) -> None:
    talk.client(first + second)
    server, client = b"", b""
    for message in (first, second):
        seen = talk.take()
        server, client = server + seen.server, client + seen.client
        if message is GET:
            talk.server(OK)
    seen = talk.take()
    server, client = server + seen.server, client + seen.client
    assert server == b"".join(message for message in (first, second) if message is GET)
    assert client == b"".join(OK if message is GET else FORBIDDEN for message in (first, second))


def test_smuggling_by_response_splitting_a_body_behind_head_204_or_304_answers_nothing() -> None:
    for asked, answer in (
        (GET.replace(b"GET", b"HEAD"), OK),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\nbody"),
        (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nbody"),
    ):
        talk = Talk(lambda data: [data])
        talk.client(asked + GET)
        talk.take()
        talk.server(answer)
        seen = talk.take()
        assert seen.client == answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        assert (seen.server, seen.end) == (b"", "close")


# --- upgrades and tunnels --------------------------------------------------------------------------------------------

UPGRADE = asking(b"/a", b"Connection: upgrade", b"Upgrade: websocket")


def test_cve_2024_23326_a_200_opens_no_tunnel(talk: Talk) -> None:
    talk.client(UPGRADE + DENY)
    talk.server(b"HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n")
    seen = talk.take()
    assert b"deny" not in seen.server
    assert seen.records[-1] == "403 GET http://h/deny"


def test_cve_2026_73548_one_client_has_one_server_connection(talk: Talk) -> None:
    for _ in range(4):
        talk.client(GET)
        talk.server(OK)
    assert talk.connects == 1


@pytest.mark.parametrize("path", [b"h:443", b"/a", b"h:443/deny"])
def test_cve_2025_64763_connect_is_refused_and_early_data_goes_nowhere(talk: Talk, path: bytes) -> None:
    talk.client(asking(path).replace(b"GET", b"CONNECT") + b"early")
    talk.expect_refusal(405, "CONNECT")
    assert not talk.connects


def test_cve_2025_64763_early_data_behind_an_upgrade_waits_for_101(talk: Talk) -> None:
    talk.client(UPGRADE + b"early")
    assert talk.take().server == UPGRADE


def test_the_beginning_of_an_http_2_preface_and_nothing_more_of_it_is_named_and_refused(talk: Talk) -> None:
    talk.client(b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n" + bytes(9))
    talk.expect_refusal(505, "HTTP/2")


def test_tls_on_a_plain_port_is_named_and_refused(talk: Talk) -> None:
    talk.client(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100))
    talk.expect_refusal(400, "TLS")


def test_the_judge_is_asked_about_what_the_server_reads(talk: Talk) -> None:
    """The absolute form names its host twice; it passes only if both agree."""
    talk.client(asking(b"http://h/x/../a"))
    assert [(type(request), request.host, request.path) for request in talk.asked] == [(Request, b"h", b"/a")]
    assert talk.take().server == asking(b"http://h/a")
