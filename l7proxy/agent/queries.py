"""The methods of the agent socket, one function each, in QUERIES. `observe` is AgentApi's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from l7proxy import __version__, compiled
from l7proxy.agent import health, report
from l7proxy.agent.api import Answer
from l7proxy.agent.configuration import Configuration
from l7proxy.agent.dataplane.reconciler import Published, Reconciler
from l7proxy.agent.dataplane.revocation import Revocation
from l7proxy.agent.exporters import Exporters
from l7proxy.agent.flow_recorder import Recorder
from l7proxy.agent.shadow import ShadowPolicies
from l7proxy.cluster.state import ClusterState
from l7proxy.errors import ConfigError
from l7proxy.flows.ring import Ring
from l7proxy.flows.sinks.feed import Feed
from l7proxy.link.server import LinkServer
from l7proxy.settings import derived
from l7proxy.simulate import trace
from l7proxy.simulate.cluster import Cluster
from l7proxy.sources.source import Source

if TYPE_CHECKING:  # it imports the Kubernetes client, which only its source needs
    from l7proxy.agent.cluster_status.service import ClusterStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a running agent that answers are read from."""

    configuration: Configuration
    source: Source
    backend: str
    cluster_state: ClusterState
    reconciler: Reconciler
    revocation: Revocation
    link: LinkServer
    recorder: Recorder
    ring: Ring
    """The one that readers of flows read."""
    feeds: Sequence[Feed]
    cluster_status: ClusterStatus | None = None
    """None if nothing is reported in the cluster."""
    shadow: ShadowPolicies | None = None
    """None if there are no shadow policies."""
    exporters: Exporters | None = None


Query = Callable[[Parts, Mapping[str, Any]], object]


def answers(parts: Parts) -> dict[str, Answer]:
    return {name: partial(query, parts) for name, query in QUERIES.items()}


def _status(parts: Parts, question: Mapping[str, Any]) -> object:
    """`detail` and `problems` in the answer are those of the input of revision `revision`, never of a newer one."""
    reconciler, source, ring = parts.reconciler, parts.source.health(), parts.ring
    current = reconciler.current
    return {
        "node": parts.configuration.settings.node,
        "audit": parts.configuration.settings.audit,
        "settings": report.settings(parts.configuration),
        "version": __version__,
        "build": compiled.word(),
        "backend": parts.backend,
        "revision": reconciler.revision,
        "enforced_revision": reconciler.enforced_revision,
        "not_ready": list(health.not_ready(reconciler, parts.link.workers())),
        "source": {
            "kind": source.kind,
            "location": source.location,
            "reachable": source.reachable,
            "age": report.age(source.contact, time.monotonic()),
            "synced": current is not None,
            "detail": dict(sorted(current.source.detail.items())) if current else {},
            "problems": report.problems(current) if current else [],
        },
        "kernel": report.kernel(reconciler.kernel, parts.revocation.state),
        "workers": [report.worker(one) for one in parts.link.workers()],
        "policies": report.policy_states(current) if current else [],
        "endpoints": report.endpoints(current) if current else [],
        "cluster": parts.cluster_status.report() if parts.cluster_status else None,
        "pod_interfaces": {"problems": list(current.interfaces.problems) if current else []},
        "secondary_interfaces": report.secondary(current) if current else [],
        "unknown_pods": [report.unknown(one) for one in current.snapshots.unknown] if current else [],
        "flows": {
            "seen": ring.seen,
            "lost": ring.lost,
            "capacity": ring.capacity,
            "rate_limited": report.rate_limited(parts.recorder.not_reported, current),
            "sinks": [report.sink(feed) for feed in parts.feeds],
            "exporters_problem": parts.exporters.problem if parts.exporters else "",
        },
        "shadow": parts.shadow.report() if parts.shadow else None,
    }


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
    cluster = Cluster.live(parts.cluster_state, current.view, current.snapshots.workers.endpoints)
    paths = derived.http_options(parts.configuration.settings).paths
    answer = await asyncio.to_thread(trace.answer, cluster, asked, paths)
    return {"trace": answer.to_json()}


def _listed(name: str, lister: Callable[[Published], list[dict[str, Any]]]) -> Query:
    """An empty list until the source has been read."""
    return lambda parts, _: {name: lister(current) if (current := parts.reconciler.current) else []}


QUERIES: Final[Mapping[str, Query]] = {
    "status": _status,
    "policy": _policy,
    "trace": _trace,
    "endpoints": _listed("endpoints", report.endpoints),
    "identities": _listed("identities", report.identities),
    "services": _listed("services", report.services),
    "policies": _listed("policies", report.policy_states),
}
