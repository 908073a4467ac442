"""Header rules on HTTP/1: the server reads the rewritten request, and no record shows a secret."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from l7proxy.flows.records import HttpRequest
from l7proxy.gate.options import HttpOptions
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.secret import Sealed
from l7proxy.model.verdict import Verdict
from l7proxy.policy.combine import evaluate_l7
from l7proxy.policy.decide import HttpTable, PortPolicy
from l7proxy.policy.decision import Decision
from l7proxy.policy.headers import HeaderRule, Mismatch, SecretName
from l7proxy.policy.rules import HttpRule
from tests.unit.gate.talk import FORBIDDEN, OK, Talk

REF = RuleRef("CiliumNetworkPolicy", "default", "p", "spec.ingress[0]")
SECRET = b"hunter2-planted"


def policy(*matches: HeaderRule, path: str = "/.*") -> Callable[[Request], PolicyVerdict]:
    table = HttpTable((HttpRule(REF, path=path, header_matches=matches),))
    side = PortPolicy(Decision(Verdict.REDIRECTED, REF), (table, Decision(Verdict.DROPPED, REF)))
    return lambda request: evaluate_l7(None, side, request)


def sealed(mismatch: Mismatch = Mismatch.REPLACE) -> HeaderRule:
    return HeaderRule("Authorization", None, mismatch, SecretName("default", "s"), Sealed(SECRET))


def post(*lines: bytes, path: bytes = b"/a") -> bytes:
    head = [b"POST %b HTTP/1.1" % path, b"Host: h", *lines, b"Content-Length: 4", b"", b""]
    return b"\r\n".join(head) + b"body"


ASKED = ("FORWARDED POST http://h/a", "200 POST http://h/a")


def test_the_head_is_rewritten_and_the_body_follows(talk: Talk) -> None:
    talk.judge = policy(HeaderRule("X-Token", "right", Mismatch.REPLACE))
    talk.client(post(b"x-TOKEN: wrong", b"X-B:  kept "))
    talk.server(OK)
    talk.expect(server=post(b"X-Token: right", b"X-B:  kept "), client=OK, records=ASKED)


def test_each_request_is_rewritten_by_itself(talk: Talk) -> None:
    talk.judge = policy(HeaderRule("X-Token", "right", Mismatch.ADD))
    sent = b""
    for lines, expected in (((), (b"Content-Length: 4", b"X-Token: right")), ((b"X-Token: right",), ())):
        talk.client(post(*lines))
        talk.server(OK)
        head, _, body = post().partition(b"\r\n\r\n")
        wanted = head.replace(b"Content-Length: 4", b"\r\n".join(expected)) if expected else None
        sent = post(*lines) if wanted is None else wanted + b"\r\n\r\n" + body
        talk.expect(server=sent, client=OK, records=ASKED)


def test_pipelined_requests_do_not_share_a_rewrite(talk: Talk) -> None:
    talk.judge = policy(HeaderRule("X-Old", "0", Mismatch.DELETE))
    talk.client(post(b"X-Old: 1") + post() + post(b"x_old: 1"))
    for _ in range(3):
        talk.server(OK)
    talk.expect(server=post() * 3, client=OK * 3, records=ASKED * 3)


def test_a_rewrite_that_fails_forwards_nothing(talk: Talk) -> None:
    talk.judge = policy(HeaderRule("X-Token", "right", Mismatch.REPLACE), HeaderRule("X-Need", None))
    talk.client(post())
    talk.expect(client=FORBIDDEN, records=("DROPPED POST http://h/a", "403 POST http://h/a"))
    assert not talk.connects


def test_a_normalised_path_and_a_rewrite_go_together(talk: Talk) -> None:
    talk.judge = policy(HeaderRule("X-Token", "right", Mismatch.REPLACE), path="/a")
    talk.client(post(b"X-Token: wrong", path=b"/x/..//a"))
    talk.server(OK)
    talk.expect(server=post(b"X-Token: right"), client=OK, records=ASKED)


@pytest.mark.parametrize("line", [b"Connection: x-token", b"Connection: keep-alive, X-Token"])
def test_a_client_cannot_have_a_written_header_stripped_on_the_way(talk: Talk, line: bytes) -> None:
    talk.judge = policy(HeaderRule("X-Token", "right", Mismatch.REPLACE))
    talk.client(post(line))
    assert talk.take().server == b""


REMARKS = [
    (HeaderRule("X-Token", "right", Mismatch.LOG), (), ("header missing: x-token",)),
    (HeaderRule("X-Token", "right", Mismatch.LOG), (b"X-Token: right",), ()),
    (HeaderRule("X-Token", "right", Mismatch.DELETE), (b"X-Token: wrong",), ("header rejected: x-token",)),
    (
        HeaderRule("X-Token", "right", Mismatch.REPLACE),
        (b"X-Token: wrong",),
        ("header missing: x-token", "header rejected: x-token"),
    ),
]


@pytest.mark.parametrize(("rule", "lines", "remarks"), REMARKS)
def test_what_was_wanting_is_told_by_name(
    talk: Talk, rule: HeaderRule, lines: tuple[bytes, ...], remarks: tuple[str, ...]
) -> None:
    talk.judge = policy(rule)
    talk.client(post(*lines))
    (asked,) = talk.records
    assert isinstance(asked, HttpRequest)
    assert asked.remarks == remarks
    assert asked.headers == ()


def test_values_are_told_where_the_configuration_opens_them(talk: Talk) -> None:
    talk.options = HttpOptions(flow_headers=frozenset({b"x-token"}))
    talk.judge = policy(HeaderRule("X-Token", "right", Mismatch.REPLACE), HeaderRule("X-Other", "o", Mismatch.ADD))
    talk.client(post(b"X-Token: wrong"))
    (asked,) = talk.records
    assert isinstance(asked, HttpRequest)
    assert asked.remarks == (
        "header missing: x-token: right",
        "header missing: x-other",
        "header rejected: x-token: wrong",
    )
    assert asked.headers == (("x-token", "right"),)  # as forwarded


@pytest.mark.parametrize("mismatch", Mismatch)
@pytest.mark.parametrize(
    "line", [b"X: y", b"Authorization: " + SECRET, b"authorization: other", b"Authorization_: x"], ids=bytes.decode
)
@pytest.mark.parametrize("opened", [False, True])
def test_a_planted_secret_is_in_no_record(talk: Talk, mismatch: Mismatch, line: bytes, opened: bool) -> None:
    """Not even if the client sent it and the setting opens headers to the flow log."""
    talk.options = HttpOptions(
        flow_headers=frozenset({b"authorization", b"x"} if opened else ()),
        secret_headers=frozenset({b"authorization"}),
        deny_header=True,
    )
    talk.judge = policy(sealed(mismatch))
    talk.client(post(line))
    seen = talk.take()
    assert SECRET not in msgspec.msgpack.encode(talk.records)
    assert SECRET not in seen.client
    if mismatch in (Mismatch.ADD, Mismatch.REPLACE):
        assert b"Authorization: " + SECRET in seen.server


def test_a_session_older_than_the_secret_does_not_show_what_was_written(talk: Talk) -> None:
    """Its options do not list the header as secret yet."""
    talk.options = HttpOptions(flow_headers=frozenset({b"authorization"}))
    talk.judge = policy(sealed())
    talk.client(post())
    (asked,) = talk.records
    assert isinstance(asked, HttpRequest)
    assert asked.headers == (("authorization", "[redacted]"),)
    assert asked.remarks == ("header missing: authorization: [redacted]",)


def chunked(*trailers: bytes, lines: tuple[bytes, ...] = ()) -> bytes:
    head = [b"POST /a HTTP/1.1", b"Host: h", *lines, b"Transfer-Encoding: chunked", b"", b"4", b"body", b"0"]
    return b"\r\n".join([*head, *trailers, b"", b""])


@pytest.mark.parametrize("trailer", [b"X-Token: other", b"x_TOKEN: other", b"X.Token: other"])
@pytest.mark.parametrize("sent", [(), (b"X-Token: right",), (b"X-Token: wrong",)], ids=["none", "right", "wrong"])
@pytest.mark.parametrize("mismatch", [Mismatch.REPLACE, Mismatch.ADD])
def test_a_trailer_cannot_say_a_written_header_again(
    talk: Talk, mismatch: Mismatch, sent: tuple[bytes, ...], trailer: bytes
) -> None:
    """RFC 9110 6.5.2: some servers merge trailers into the head; they would see another value than was evaluated."""
    talk.judge = policy(HeaderRule("X-Token", "right", mismatch))
    talk.client(chunked(trailer, lines=sent))
    seen = talk.take()
    assert seen.client.startswith(b"HTTP/1.1 400 ")
    assert b"other\r\n" not in seen.server  # the line, and with it the message, never ends
    assert seen.records == ["FORWARDED POST http://h/a", "400 POST http://h/a"]


def test_other_trailers_pass(talk: Talk) -> None:
    talk.judge = policy(HeaderRule("X-Token", "right", Mismatch.REPLACE))
    talk.client(chunked(b"X-Digest: 1", lines=(b"X-Token: right",)))
    talk.server(OK)
    talk.expect(server=chunked(b"X-Digest: 1", lines=(b"X-Token: right",)), client=OK, records=ASKED)


@pytest.mark.parametrize("trailer", [b"X-Admin: 1", b"x_admin: 1", b"x.admin: 1"])
def test_what_a_rule_deletes_does_not_come_in_the_trailers(talk: Talk, trailer: bytes) -> None:
    """Recipients may merge trailers into the head (RFC 9110 6.5.2)."""
    talk.judge = policy(HeaderRule("X-Admin", "no", Mismatch.DELETE))
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    talk.client(head + b"1\r\na\r\n0\r\n" + trailer + b"\r\n\r\n")
    assert trailer + b"\r\n" not in talk.take().server  # the message never ends
