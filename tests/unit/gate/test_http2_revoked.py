"""HTTP/2 streams open, or waiting, when policy changes: those now refused end on both sides, and are recorded."""

from __future__ import annotations

from l7proxy.flows.records import Connection, HttpResponse
from l7proxy.model.http import Request
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.model.verdict import Verdict
from l7proxy.wire import http2_frames as frames
from l7proxy.wire.http2_frames import Code
from tests.unit.gate.http2_talk import OK, Conversation, line
from tests.unit.gate.talk import ALLOWED, DENIED

POST = line("/a", "POST")


def revoke(http2: Conversation, path: bytes = b"/a") -> None:
    """Refuses this path from now on."""

    def judge(request: Request) -> PolicyVerdict:
        return DENIED if request.path == path else ALLOWED

    http2.judge = judge
    http2.policy_changed()


def told(http2: Conversation) -> tuple[int, str]:
    """The status and the reason of the last revoked stream; its two records are adjacent."""
    answer, dropped = http2.records[-2:]
    assert isinstance(answer, HttpResponse)
    assert isinstance(dropped, Connection)
    assert dropped.policy_verdict.verdict is Verdict.DROPPED
    assert answer.policy_verdict.reason == dropped.policy_verdict.reason
    return answer.status, dropped.policy_verdict.reason


def test_what_is_allowed_still_goes_on_untouched(http2: Conversation) -> None:
    http2.get(1)
    http2.policy_changed()
    http2.answer(1, body=b"whole")
    assert http2.client.of(1).data == b"whole"
    assert http2.client.of(1).ended
    assert http2.told() == ["FORWARDED GET http://h/a", "200 GET http://h/a"]


def test_a_download_ends_by_a_reset_and_does_not_look_complete(http2: Conversation) -> None:
    http2.get(1)
    http2.get(3, line("/b"))
    for stream in (1, 3):
        http2.server.h2.send_headers(stream, OK)
        http2.server.h2.send_data(stream, b"half")
    http2.run()
    revoke(http2)
    assert (http2.client.of(1).reset, http2.client.of(1).ended) == (Code.CANCEL, False)
    assert http2.server.of(1).reset == Code.CANCEL
    assert told(http2) == (200, "policy changed: no rule matched")
    http2.server.h2.send_data(3, b"rest", end_stream=True)
    http2.run()
    assert (http2.client.of(3).data, http2.client.of(3).ended) == (b"halfrest", True)
    assert http2.pairs()


def test_an_upload_ends_by_a_reset_at_the_server_and_403(http2: Conversation) -> None:
    http2.get(1, POST, end=False)
    http2.client.h2.send_data(1, b"half")
    http2.run()
    revoke(http2)
    assert http2.server.of(1).reset == Code.CANCEL
    assert http2.client.of(1).status == 403
    assert told(http2) == (403, "policy changed: no rule matched")
    sent = http2.to_server
    http2.say(frames.frame(frames.DATA, 0, 1, b"more"))
    assert http2.to_server == sent
    assert not http2.end()
    assert http2.pairs()


def test_a_stream_that_waits_for_room_is_never_forwarded() -> None:
    http2 = Conversation(lambda data: [data], takes=1)
    http2.client.h2.send_headers(1, line("/b"), end_stream=True)
    http2.get(3)
    assert 3 not in http2.server.messages
    revoke(http2)
    assert http2.client.of(3).status == 403
    http2.answer(1)
    assert 3 not in http2.server.messages
    assert http2.client.of(1).status == 200
    assert http2.pairs()


def test_a_stream_whose_server_is_not_reached_yet_is_never_forwarded() -> None:
    http2 = Conversation(lambda data: [data])
    http2.reachable = False
    http2.get(1)
    revoke(http2)
    http2.reachable = True
    http2.run()
    assert 1 not in http2.server.messages
    assert told(http2) == (403, "policy changed: no rule matched")


def test_what_was_answered_by_us_is_not_judged_again(http2: Conversation) -> None:
    http2.client.acknowledges = False
    http2.get(1, line("/deny"), end=False)
    asked = len(http2.asked)
    http2.policy_changed()
    assert len(http2.asked) == asked
