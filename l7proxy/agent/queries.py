"""The methods of the agent socket, one function each, in QUERIES. `observe` is AgentApi's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from l7proxy.agent import report
from l7proxy.agent.api import Answer
from l7proxy.agent.dataplane.reconciler import Reconciler
from l7proxy.agent.dataplane.revocation import Revocation
from l7proxy.agent.flow_recorder import Recorder
from l7proxy.cluster.state import ClusterState
from l7proxy.errors import ConfigError
from l7proxy.flows.sinks.feed import Feed
from l7proxy.link.server import LinkServer
from l7proxy.setting_definitions import Settings
from l7proxy.settings import derived
from l7proxy.simulate import trace
from l7proxy.simulate.cluster import Cluster
from l7proxy.sources.source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a running agent that answers are read from."""

    settings: Settings
    source: Source
    backend: str
    cluster_state: ClusterState
    reconciler: Reconciler
    revocation: Revocation
    link: LinkServer
    recorder: Recorder
    feeds: Sequence[Feed]


def answers(parts: Parts) -> dict[str, Answer]:
    return {name: partial(query, parts) for name, query in QUERIES.items()}


def _status(parts: Parts, question: Mapping[str, Any]) -> object:
    return report.status(
        node=parts.settings.node,
        audit=parts.settings.audit,
        backend=parts.backend,
        source=parts.source.health(),
        reconciler=parts.reconciler,
        revoked=parts.revocation.state,
        workers=parts.link.workers(),
        ring=parts.recorder.ring,
        not_told=parts.recorder.not_told,
        feeds=parts.feeds,
    )


def _policy(parts: Parts, question: Mapping[str, Any]) -> object:
    wanted = question.get("endpoint")
    found = report.policies(parts.reconciler.current, "" if wanted is None else str(wanted))
    if found is None:
        raise ConfigError(f"no endpoint {wanted!r:.80} on this node")
    return {"policy": found}


async def _trace(parts: Parts, question: Mapping[str, Any]) -> object:
    asked, current = trace.Question.of(question), parts.reconciler.current
    if current is None:
        raise ConfigError("not ready: the source has not been read yet")
    cluster = Cluster.live(parts.cluster_state, current.view, current.pictures.workers.endpoints)
    return {
        "trace": (
            await asyncio.to_thread(trace.answer, cluster, asked, derived.http_options(parts.settings).paths)
        ).to_json()
    }


def _policies(parts: Parts, question: Mapping[str, Any]) -> object:
    current = parts.reconciler.current
    return {"policies": [report.policy_state(one, current.view) for one in current.view.policies] if current else []}


QUERIES: Final[Mapping[str, Callable[[Parts, Mapping[str, Any]], object]]] = {
    "status": _status,
    "policy": _policy,
    "trace": _trace,
    "endpoints": lambda parts, _: {"endpoints": report.endpoints(parts.reconciler.current)},
    "identities": lambda parts, _: {"identities": report.identities(parts.reconciler.current)},
    "services": lambda parts, _: {"services": report.services(parts.reconciler.current)},
    "policies": _policies,
}
