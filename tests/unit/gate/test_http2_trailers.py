"""Request trailers over HTTP/2 must not repeat a header that was evaluated in the head."""

from __future__ import annotations

import pytest

from l7proxy.model.http import EditKind, HeaderEdit, Request, Rewrite
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.policy.headers import HeaderRule, Mismatch
from l7proxy.policy.match.http import HttpMatcher
from l7proxy.policy.rules import HttpRule
from tests.unit.gate.http2_talk import Conversation, line
from tests.unit.gate.talk import ALLOWED

REF = RuleRef("P", "ns", "p")
POST = line("/a", "POST", ("x-token", "right"))


def rewriting(request: Request) -> PolicyVerdict:
    request.rewrite = Rewrite((HeaderEdit(EditKind.SET, b"X-Written", b"w", secret=True),))
    return ALLOWED


@pytest.mark.parametrize("name", [b"x-token", b"x_token", b"x.token", b"x-written", b"x_written", b"x!written"])
def test_a_judged_or_written_field_is_not_said_again(http2: Conversation, name: bytes) -> None:
    http2.judge = rewriting
    http2.get(1, POST, end=False)
    http2.client.h2.send_data(1, b"body")
    http2.client.h2.send_headers(1, [(name, b"other")], end_stream=True)
    http2.run()
    assert http2.client.messages[1].status == 400
    assert not http2.server.messages[1].ended
    assert not http2.server.messages[1].trailers


@pytest.mark.parametrize("name", [b"authorization", b"set_cookie", b"proxy.authorization"])
def test_a_field_that_is_read_before_the_content_does_not_follow_it(http2: Conversation, name: bytes) -> None:
    http2.get(1, POST, end=False)
    http2.client.h2.send_headers(1, [(name, b"other")], end_stream=True)
    http2.run()
    assert http2.client.messages[1].status == 400
    assert not http2.server.messages[1].trailers


def test_other_trailers_pass(http2: Conversation) -> None:
    http2.judge = rewriting
    http2.get(1, POST, end=False)
    http2.client.h2.send_headers(1, [(b"x-digest", b"1")], end_stream=True)
    http2.run()
    assert http2.server.messages[1].trailers == [(b"x-digest", b"1")]


def test_what_a_rule_deletes_does_not_come_in_the_trailers(http2: Conversation) -> None:
    """The header was not in the head, where it would have been removed."""
    matcher = HttpMatcher((HttpRule(REF, header_matches=(HeaderRule("X-Admin", "no", Mismatch.DELETE),)),))

    def judge(request: Request) -> PolicyVerdict:
        request.rewrite = matcher.all_of(request, matcher.candidates(request.method, request.path))[1]
        return ALLOWED

    http2.judge = judge
    http2.get(1, line("/a", "POST"), end=False)
    http2.client.h2.send_headers(1, [(b"x-admin", b"1")], end_stream=True)
    http2.run()
    assert http2.client.messages[1].status == 400
    assert not http2.server.messages[1].trailers
