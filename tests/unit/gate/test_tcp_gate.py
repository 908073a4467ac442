"""The TCP gate: a pipe with two ends, without records."""

from __future__ import annotations

import pytest

from l7proxy.gate.actions import Phase
from tests.unit.gate.talk import Talk


@pytest.fixture
def pipe(talk: Talk) -> Talk:
    talk.by_request = False
    return talk


def test_it_connects_at_once_for_the_server_may_speak_first(pipe: Talk) -> None:
    phases = [pipe.gate.waiting_for]
    assert pipe.connects == 1
    pipe.server(b"220 hello\r\n")
    pipe.expect(client=b"220 hello\r\n")
    assert [*phases, pipe.gate.waiting_for] == [Phase.CONNECT, Phase.TUNNEL]


def test_bytes_pass_both_ways_and_each_fin_passes_on(pipe: Talk) -> None:
    pipe.client(b"\x00\x01")
    pipe.server(b"\x02")
    pipe.expect(server=b"\x00\x01", client=b"\x02")
    pipe.client_eof()
    pipe.expect(fin=("server",))
    pipe.server(b"rest")
    pipe.server_eof()
    pipe.expect(client=b"rest", end="close")


def test_the_server_may_finish_first(pipe: Talk) -> None:
    assert pipe.connects <= 1
    pipe.connected()
    pipe.server_eof()
    pipe.expect(fin=("client",))
    pipe.client(b"more")
    pipe.client_eof()
    pipe.expect(server=b"more", end="close")


def test_failures_reset_the_client_once(pipe: Talk) -> None:
    pipe.upstream_failed("connection refused")
    pipe.expect(end="reset")
    assert pipe.gate.waiting_for is Phase.CLOSED
    pipe.upstream_failed("again")
    pipe.client_lost()
    pipe.server_eof()
    pipe.expect()


def test_an_idle_pipe_is_cut_by_its_own_timer_only(pipe: Talk) -> None:
    pipe.connected()
    assert pipe.gate.timed_out(Phase.CONNECT) == []
    pipe.timed_out()
    pipe.expect(end="reset")
