"""The corpus through the gate, in every split: allowed messages pass whole, refused ones leave one record."""

from __future__ import annotations

from pathlib import Path

import pytest

from l7proxy.flows.records import HttpRequest, HttpResponse, Malformed
from l7proxy.gate.actions import Phase
from l7proxy.wire import http1_strict
from l7proxy.wire.head import RequestHead
from tests.unit.gate.conftest import whole
from tests.unit.gate.talk import ALLOWED, DENY, FORBIDDEN, GET, OK, Talk
from tests.unit.wire import corpus
from tests.unit.wire.corpus import Valid


@pytest.mark.parametrize("case", corpus.valid(), ids=str)
def test_valid_requests_pass(talk: Talk, case: Valid) -> None:
    head = http1_strict.request(case.data)
    assert isinstance(head, RequestHead)
    talk.judge = lambda request: ALLOWED
    talk.client(case.data)
    seen = talk.take()
    assert seen.server == head.raw + case.data[head.size :]
    assert (seen.client, seen.end) == (b"", "")
    assert [request.path for request in talk.asked] == [case.path]


@pytest.mark.parametrize("path", corpus.files("invalid") + corpus.files("ambiguous"), ids=lambda path: path.stem)
def test_other_requests_are_answered_once_and_end(talk: Talk, path: Path) -> None:
    talk.judge = lambda request: ALLOWED
    talk.client(path.read_bytes())
    seen = talk.take()
    assert seen.client.startswith(b"HTTP/1.1 %d " % corpus.status(path))
    assert b"\r\nconnection: close\r\n" in seen.client
    assert seen.client.count(b"HTTP/1.1 ") == 1 or b"HTTP/1.1`" in seen.client
    assert seen.end == "close"
    kinds = [type(record) for record in talk.records]
    assert kinds == ([HttpRequest, HttpResponse] if talk.asked else [Malformed])
    assert (seen.server == b"") == (not talk.asked)


@pytest.mark.parametrize("case", corpus.valid(), ids=str)
def test_valid_requests_pass_pipelined_behind_a_denied_one(case: Valid) -> None:
    head = http1_strict.request(case.data)
    assert isinstance(head, RequestHead)
    talk = Talk(whole)
    talk.client(DENY + case.data + DENY)
    seen = talk.take()
    assert seen.server == head.raw + case.data[head.size :]
    assert (seen.client, seen.end) == (FORBIDDEN, "")
    assert [request.path for request in talk.asked] == [b"/deny", case.path], "the third waits for the second's answer"


@pytest.mark.parametrize("path", corpus.files("invalid") + corpus.files("ambiguous"), ids=lambda path: path.stem)
def test_other_requests_are_refused_pipelined_behind_an_allowed_and_a_denied_one(path: Path) -> None:
    talk = Talk(whole)
    talk.client(GET + DENY + path.read_bytes() + GET)
    talk.expect(server=GET, records=("FORWARDED GET http://h/a",))
    talk.server(OK)
    seen = talk.take()
    assert seen.client.startswith(OK + FORBIDDEN + b"HTTP/1.1 %d " % corpus.status(path))
    assert seen.end == "close"
    assert seen.records[:3] == ["200 GET http://h/a", "DROPPED GET http://h/deny", "403 GET http://h/deny"]
    assert seen.records[-1].split()[-1 if "malformed" in seen.records[-1] else 0] == path.stem[:3]
    assert (seen.server == b"") == (len(talk.asked) == 2), "only the body can be at fault behind a head that was judged"


@pytest.mark.parametrize("path", corpus.files("responses"), ids=lambda path: path.stem)
def test_responses_pass_whole_or_not_at_all(talk: Talk, path: Path) -> None:
    data = path.read_bytes()
    talk.client(GET)
    talk.take()
    talk.server(data)
    if talk.gate.waiting_for is Phase.TRANSFER:
        talk.server_eof()
    seen = talk.take()
    status = corpus.status(path)
    assert seen.records == [f"{status} GET http://h/a"]
    if status == 502:
        assert seen.client.startswith(b"HTTP/1.1 502 ")
        assert seen.end == "close"
    else:
        assert seen.client == corpus.forwarded(data)
