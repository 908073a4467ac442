"""What the methods of the agent socket answer, before the source has been read and after."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from l7proxy.agent import queries
from l7proxy.agent.api import Answer
from l7proxy.agent.flow_recorder import Recorder
from l7proxy.errors import ConfigError
from l7proxy.flows.flow import Flow
from l7proxy.flows.ring import Ring
from l7proxy.flows.sinks import registry
from l7proxy.flows.sinks.feed import Feed
from l7proxy.model.resources import Pod, Upsert
from l7proxy.setting_definitions import Settings
from l7proxy.sources.source import SYNCED, SourceHealth
from tests.unit.agent.idle_agent import idle_parts

WEB = Pod("shop", "web", "n1", ("10.0.1.5",), {"app": "web"})

ASKED = {"from": "shop/web", "to": "1.2.3.4", "port": "80/TCP"}


class Agent:
    """The parts of an agent, with the fake kernel; nothing runs."""

    def __init__(self, directory: Path) -> None:
        settings = Settings(node="n1", source=str(directory), flow_log=str(directory / "flows.jsonl"))
        self.ring = Ring(15)
        feeds = [Feed(name, sink, self.ring) for name, sink in registry.make(settings).items()]
        parts = idle_parts(settings, Recorder(self.ring, node="n1"), feeds=feeds)
        self.reconciler = parts.reconciler
        self.answers: dict[str, Answer] = queries.answers(parts)

    async def ask(self, method: str, **question: Any) -> Any:
        answer = self.answers[method](question)
        return await answer if isinstance(answer, Awaitable) else answer


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


async def test_before_the_source_has_been_read(agent: Agent) -> None:
    agent.ring.append(Flow(uuid="1"))
    status = await agent.ask("status")
    assert (status["node"], status["backend"], status["revision"]) == ("n1", "fake", 0)
    assert status["flows"]["seen"] == 1
    assert status["flows"]["sinks"] == [{"name": "flow log", "written": 0, "lost": 0, "problem": ""}]
    for method in ("policy", "policies", "endpoints", "identities", "services"):
        assert await agent.ask(method) == {method: []}
    with pytest.raises(ConfigError, match="not ready"):
        await agent.ask("trace", **ASKED)


async def test_after_it(agent: Agent) -> None:
    agent.reconciler.submit([Upsert(WEB), *SYNCED], SourceHealth())
    await agent.reconciler.step()
    assert [one["name"] for one in (await agent.ask("endpoints"))["endpoints"]] == ["web"]
    assert [one["name"] for one in (await agent.ask("policy", endpoint="shop/web"))["policy"]] == ["web"]
    assert (await agent.ask("trace", **ASKED))["trace"]["verdict"] == "FORWARDED"
    with pytest.raises(ConfigError, match="no endpoint 'other' on this node"):
        await agent.ask("policy", endpoint="other")
