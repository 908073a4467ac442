"""The agent's socket: answers, and no input to it does harm."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from l7proxy.agent import api
from l7proxy.agent.api import AgentApi
from l7proxy.agent.flow_recorder import Recorder
from l7proxy.errors import ConfigError
from l7proxy.flows.pack import pack
from l7proxy.flows.records import HttpRequest
from l7proxy.flows.ring import Ring
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict


def refuse(question: object) -> object:
    raise ConfigError("no such endpoint")


@pytest.fixture
def ring() -> Ring:
    return Ring(63)


@pytest.fixture
async def path(tmp_path: Path, ring: Ring) -> AsyncIterator[Path]:
    socket = tmp_path / "agent.sock"
    answers: dict[str, api.Answer] = {"status": lambda asked: {"node": "n1", "asked": dict(asked)}, "policy": refuse}
    async with AgentApi(socket, ring, answers).serving():
        yield socket
    assert not socket.exists()


async def talk(path: Path, *lines: bytes) -> list[Any]:
    """Sends everything, then returns all answers until the other side closes."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(b"".join(lines))
        writer.write_eof()
        async with asyncio.timeout(10):
            data = await reader.read(-1)
        return [json.loads(line) for line in data.splitlines()]
    finally:
        writer.close()


def record(number: int) -> HttpRequest:
    conn = Conn("10.0.0.6", number, "10.0.0.5", 80, 300, 301)
    policy_verdict = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS)
    return HttpRequest(number, conn, policy_verdict, "GET", f"http://a/{number}", "HTTP/1.1")


async def test_questions_are_answered_one_by_one(path: Path) -> None:
    question = b'{"method": "status"}\n'
    assert await talk(path, question, question) == [{"node": "n1", "asked": {"method": "status"}}] * 2


async def test_only_we_may_ask(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"\n", "not valid JSON"),
        (b"GET / HTTP/1.1\n", "not valid JSON"),
        (b"\xff\xfe\n", "not valid JSON"),
        (b"[1]\n", "the request must be a JSON object"),
        (b"{}\n", "unknown method None: must be one of observe, policy, status"),
        (b'{"method": "reboot"}\n', "unknown method 'reboot'"),
        (b'{"method": ["status"]}\n', "unknown method ['status']"),
        (b'{"method": "policy"}\n', "no such endpoint"),
        (b'{"method": "observe", "lats": 1}\n', "observe: unknown field 'lats'"),
        (b'{"method": "observe", "last": -1}\n', "observe: last"),
        (b'{"method": "observe", "filters": {"whitelist": [{"x": ["("]}]}}\n', "unknown field 'x'"),
        (b"[" * 50_000 + b"\n", "not valid JSON"),
    ],
)
async def test_garbage_is_refused_in_words_and_the_next_question_is_answered(
    path: Path, line: bytes, error: str
) -> None:
    answers = await talk(path, line, b'{"method": "status"}\n')
    assert list(answers[0]) == ["error"]
    assert error in answers[0]["error"]
    assert answers[1]["node"] == "n1"


async def test_a_line_without_end_is_bounded(path: Path) -> None:
    (answer,) = await talk(path, b"x" * (api.MAX_LINE + 10) + b"\n")
    assert answer == {"error": f"the request line is longer than {api.MAX_LINE} bytes"}


async def test_half_a_line_at_the_end_is_no_crash(path: Path) -> None:
    assert "not valid JSON" in (await talk(path, b'{"method": "st'))[0]["error"]
    assert await talk(path) == []


async def test_flows_are_observed(path: Path, ring: Ring) -> None:
    Recorder(ring, node="n1").ingest(pack([record(number) for number in range(1, 6)]))
    found = await talk(path, b'{"method": "observe", "last": 2}\n')
    assert [line["flow"]["l7"]["http"]["url"] for line in found] == ["http://a/4", "http://a/5"]


async def test_following_goes_on_until_the_client_leaves(path: Path, ring: Ring) -> None:
    recorder = Recorder(ring, node="n1")
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"method": "observe", "last": 1, "follow": true}\n')
    writer.write_eof()
    await asyncio.sleep(0.05)
    for number in (1, 2):
        recorder.ingest(pack([record(number)]))
        async with asyncio.timeout(5):
            assert json.loads(await reader.readline())["flow"]["l7"]["http"]["url"] == f"http://a/{number}"
    before = descriptors()
    writer.close()
    for _ in range(200):
        await asyncio.sleep(0.05)
        if descriptors() <= before - 2:
            return
    raise AssertionError("the connection of an observer that left is still open")


async def test_an_observer_that_does_not_read_holds_nobody_back(path: Path, ring: Ring) -> None:
    recorder = Recorder(ring, node="n1")
    _, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"method": "observe", "last": 1, "follow": true}\n')
    for number in range(20_000):
        recorder.ingest(pack([record(number)]))
        if number % 500 == 0:
            await asyncio.sleep(0)
    assert ring.seen == 20_000
    assert len(await talk(path, b'{"method": "status"}\n')) == 1
    writer.close()


async def test_too_many_clients_are_turned_away(path: Path) -> None:
    writers = [(await asyncio.open_unix_connection(path))[1] for _ in range(api.MAX_CLIENTS)]
    await asyncio.sleep(0.05)
    (answer,) = await talk(path)
    assert "try again later" in answer["error"]
    for writer in writers:
        writer.close()


async def test_a_second_agent_is_refused(path: Path, ring: Ring) -> None:
    with pytest.raises(ConfigError, match="in use"):
        async with AgentApi(path, ring, {}).serving():
            pass
    assert await talk(path, b'{"method": "status"}\n')


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
