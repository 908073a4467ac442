"""What `/metrics` serves: the agent's own metrics, read from its parts at each scrape, and those of flows.

Names begin with `l7proxy_`; beside them are those of Cilium's agent that its dashboards query, where the fact is
known. docs/metrics.md has the list.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from l7proxy import __version__, compiled
from l7proxy.agent import health, report
from l7proxy.agent.dataplane.reconciler import Published
from l7proxy.agent.flow_recorder import Recorder
from l7proxy.link.messages import WorkerStats
from l7proxy.metrics import options
from l7proxy.metrics.families import BOUNDS, Family
from l7proxy.metrics.sink import FlowMetrics
from l7proxy.model.verdict import Action
from l7proxy.policy.l7 import kind_of
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy
from l7proxy.setting_definitions import Settings

if TYPE_CHECKING:
    from l7proxy.agent.queries import Parts

DELAYS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bounds in seconds for the time until a change is enforced."""
REUSED: Final = 0.5
"""Seconds for which an answer is given again: scrapes must not use up the agent's time, whoever asks."""


class Scraper:
    """Answers scrapes. `flows`: the sink that counts flows; None if no metrics of flows are wanted."""

    def __init__(self, settings: Settings, recorder: Recorder) -> None:
        wanted = options.parse(settings.flow_metrics) if settings.metrics_address else ()
        self.flows = (
            FlowMetrics(wanted, limit=settings.metrics_series, alive=lambda pod: recorder.knows(*pod))
            if wanted
            else None
        )
        self._delays = Family(
            "l7proxy_policy_enforcement_seconds", "From a change of the source until the node enforces it.",
            bounds=DELAYS,
        )  # fmt: skip
        self._delays.series(())
        self._cilium_delays = Family(
            "cilium_policy_implementation_delay", "As l7proxy_policy_enforcement_seconds.", ("source",), bounds=DELAYS
        )
        self._source = settings.source if settings.source == "kubernetes" else "files"
        self._scrapes = Family("hubble_metrics_http_handler_requests", "Scrapes, by status.", ("code",))
        self._scrape_time = Family(
            "hubble_metrics_http_handler_request_duration_seconds", "Time to answer a scrape.", ("code",), bounds=BOUNDS
        )
        self._turn = asyncio.Lock()
        self._last = ("", b"")
        self._made_at = 0.0
        self._process = ProcessCollector(registry=None)

    def enforced(self, seconds: float) -> None:
        """A change is enforced, so long after it was read."""
        self._delays.observe((), seconds)
        self._cilium_delays.observe((self._source,), seconds)

    async def page(self, parts: Parts, accept: str) -> tuple[str, bytes]:
        """(content type, body), in the format that the Accept header asks for."""
        encode, kind = choose_encoder(accept)
        async with self._turn:
            if self._last[0] != kind or time.monotonic() - self._made_at >= REUSED:
                self._last = kind, await self._body(parts, encode)
                self._made_at = time.monotonic()
            return self._last

    async def _body(self, parts: Parts, encode: Callable[[CollectorRegistry], bytes]) -> bytes:
        began = time.monotonic()
        own = [*agent_metrics(parts), *(family.collect() for family in self._families)]
        body = await asyncio.to_thread(lambda: encode(self._registry(own)))
        self._scrapes.series(("200",)).count += 1
        self._scrape_time.observe(("200",), time.monotonic() - began)
        return body

    @property
    def _families(self) -> Sequence[Family]:
        return self._delays, self._cilium_delays, self._scrapes, self._scrape_time

    def _registry(self, own: Iterable[Metric]) -> CollectorRegistry:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(own))
        registry.register(self._process)
        if self.flows is not None:
            registry.register(self.flows)
        return registry


class _Collected:
    """A collector of metrics that are there already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def agent_metrics(parts: Parts) -> Iterator[Metric]:
    """The facts of this moment. For the event loop that the parts belong to."""
    for group in (_build, _policy, _endpoints, _source, _kernel, _workers, _flows, _exporters, _shadow, _cilium):
        yield from group(parts)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"l7proxy_{name}", about, value=float(value))


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(f"l7proxy_{name}", about, value=value)


def _gauges(name: str, about: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _build(parts: Parts) -> Iterator[Metric]:
    yield _gauges(
        "l7proxy_build_info", "Version and build; always 1.", ("version", "build", "backend"),
        {(__version__, compiled.word(), parts.backend): 1},
    )  # fmt: skip
    ready = not any(health.not_ready(parts.reconciler, parts.link.workers()))
    yield _gauge("ready", "Whether the node enforces its policies, as /readyz says.", ready)
    yield _gauge("audit", "Whether the whole node is in audit mode.", parts.configuration.settings.audit)


def _policy(parts: Parts) -> Iterator[Metric]:
    reconciler = parts.reconciler
    yield _gauge("policy_revision", "Revision made of what was read last.", reconciler.revision)
    yield _gauge(
        "policy_enforced_revision", "Revision that kernel and all workers enforce.", reconciler.enforced_revision
    )
    yield _gauge("reconcile_seconds", "Duration of the last round of the reconciler.", reconciler.took)
    yield _gauge("reconcile_busy_seconds", "Time since the present round began; 0 between rounds.", reconciler.busy)
    current = reconciler.current
    states = Counter(report.STATES[one.state] for one in current.view.policies) if current else Counter[str]()
    yield _gauges(
        "l7proxy_policies", "Policies by state.", ("state",), {(one,): states[one] for one in report.STATES.values()}
    )


def _endpoints(parts: Parts) -> Iterator[Metric]:
    current = parts.reconciler.current
    yield _gauge("endpoints", "Pods of this node.", len(current.view.endpoints) if current else 0)
    yield _gauge(
        "unknown_pods", "Pod interfaces without a Pod object, closed.", len(current.snapshots.unknown) if current else 0
    )
    yield _gauge(
        "secondary_interfaces",
        "Interfaces that no policy applies to.",
        len(current.secondary) if current else 0,
    )


def _source(parts: Parts) -> Iterator[Metric]:
    source, current = parts.source.health(), parts.reconciler.current
    yield _gauge("source_reachable", "Whether the last attempt to reach the source succeeded.", source.reachable)
    age = report.age(source.contact, time.monotonic())
    if age is not None:
        yield _gauge("source_age_seconds", "Time since the last contact with the source.", age)
    yield _gauge(
        "source_problems", "Objects that cannot be used as they are.", len(report.problems(current)) if current else 0
    )


def _kernel(parts: Parts) -> Iterator[Metric]:
    kernel, revoked = parts.reconciler.kernel, parts.revocation.state
    intact = kernel.installed is not None and kernel.installed.intact
    yield _gauge("kernel_revision", "Revision that the kernel enforces.", kernel.revision)
    yield _gauge("kernel_intact", "Whether the kernel's rules are those that were installed.", intact)
    yield _gauge("kernel_failing", "Whether the kernel refused the newest rules.", bool(kernel.error))
    yield _counter("kernel_restored", "Repairs of rules that another program changed.", kernel.reasserted)
    yield _counter("conntrack_removed", "Connections ended since policy refuses them now.", revoked.removed)
    suppressed: Counter[tuple[str, ...]] = Counter()
    for one, count in parts.recorder.not_reported.items():
        suppressed[(one.kind.value, one.way.value)] += count
    family = CounterMetricFamily(
        "l7proxy_kernel_events_suppressed", "Packets without a flow because of log-rate.", labels=("event", "direction")
    )
    for key, count in sorted(suppressed.items()):
        family.add_metric(key, count)
    yield family


def _workers(parts: Parts) -> Iterator[Metric]:
    workers, revision = parts.link.workers(), parts.reconciler.revision
    keys = [(str(one.worker), str(one.pid)) for one in workers]
    labels = ("worker", "pid")
    yield _gauge("workers", "Workers that are connected.", len(workers))
    yield _gauge("workers_expected", "Workers by the setting.", parts.configuration.settings.workers)
    yield _gauges(
        "l7proxy_worker_revision", "Revision that the worker has applied.", labels,
        {key: one.revision for key, one in zip(keys, workers, strict=True)},
    )  # fmt: skip
    yield _gauges(
        "l7proxy_worker_revisions_behind", "Revisions that the worker has not applied yet.", labels,
        {key: max(0, revision - one.revision) for key, one in zip(keys, workers, strict=True)},
    )  # fmt: skip
    for name, stat in WorkerStats.definitions().items():
        made = CounterMetricFamily if stat.total else GaugeMetricFamily
        unit = "_bytes" if stat.unit == "bytes" else ""
        family = made(f"l7proxy_worker_{name}{unit}", f"{stat.unit}: {stat.meaning}", labels=labels)
        for key, one in zip(keys, workers, strict=True):
            family.add_metric(key, getattr(one.stats, name))
        yield family


def _flows(parts: Parts) -> Iterator[Metric]:
    ring = parts.ring
    yield _counter("ring_flows", "Flows written to the ring.", ring.seen)
    yield _counter("ring_lost", "Flows that a reader, or the ring itself, missed.", ring.lost)
    yield _gauge("ring_capacity", "Flows that the ring holds.", ring.capacity)
    for name in ("written", "lost"):
        family = CounterMetricFamily(f"l7proxy_sink_{name}", f"Events {name}, by sink.", labels=("sink",))
        for feed in parts.feeds:
            family.add_metric((feed.name,), getattr(feed, name))
        yield family
    yield _gauges(
        "l7proxy_sink_behind", "Events in the ring that the sink has not read yet.", ("sink",),
        {(feed.name,): ring.end - max(feed.position, ring.oldest) for feed in parts.feeds},
    )  # fmt: skip


def _exporters(parts: Parts) -> Iterator[Metric]:
    """Of `flow-logs-config`, with the names of Hubble's dynamic exporter."""
    exporters = parts.exporters
    if exporters is None:
        return
    active = exporters.active(time.time())
    states = Counter("active" if on else "inactive" for on in active.values())
    yield _gauges(
        "hubble_dynamic_exporter_exporters_total", "Exporters by state: inactive after their end.", ("status",),
        {(state,): states[state] for state in ("active", "inactive")},
    )  # fmt: skip
    yield _gauges(
        "hubble_dynamic_exporter_up", "Whether the exporter is active.", ("name",),
        {(name,): on for name, on in active.items()},
    )  # fmt: skip
    family = CounterMetricFamily(
        "hubble_dynamic_exporter_reconfigurations", "Changes of exporters, and files that could not be used.",
        labels=("op",),
    )  # fmt: skip
    for op in ("add", "update", "remove", "failure"):
        family.add_metric((op,), exporters.changes[op])
    yield family
    yield GaugeMetricFamily(
        "hubble_dynamic_exporter_config_hash", "Of the file in force.", value=float(exporters.digest)
    )
    yield GaugeMetricFamily(
        "hubble_dynamic_exporter_config_last_applied", "When it came into force: seconds since 1970.",
        value=exporters.applied,
    )  # fmt: skip


def _shadow(parts: Parts) -> Iterator[Metric]:
    if parts.shadow is None:
        return
    labels = ("would", "direction", "policy")
    family = CounterMetricFamily("l7proxy_shadow_verdicts", "Flows by what shadow policies would do.", labels=labels)
    for key, count in sorted(parts.shadow.counts.items()):
        family.add_metric(key, count)
    yield family


def _cilium(parts: Parts) -> Iterator[Metric]:
    """Of Cilium's agent, as its dashboards query them."""
    current = parts.reconciler.current
    yield _gauges(
        "cilium_version", "Version of l7proxy; always 1.", ("version", "revision", "arch"),
        {(__version__, "", platform.machine()): 1},
    )  # fmt: skip
    yield GaugeMetricFamily("cilium_policy", "Policies read.", value=len(current.view.policies) if current else 0)
    yield GaugeMetricFamily("cilium_policy_max_revision", "Policy revision.", value=parts.reconciler.revision)
    if current is None:
        return
    yield _gauges(
        "cilium_policy_endpoint_enforcement_status", "Endpoints by the directions of policy.", ("enforcement",),
        _enforcement(current),
    )  # fmt: skip
    yield _gauges(
        "cilium_endpoint_state", "Endpoints by state.", ("endpoint_state",),
        {("ready",): len(current.view.endpoints)},
    )  # fmt: skip
    yield _gauges("cilium_identity", "Identities by type.", ("type",), _identities(current))
    yield _gauges(
        "cilium_proxy_redirects", "Redirects to the proxy, by protocol.", ("protocol_l7",), _redirects(current)
    )  # fmt: skip


def _enforcement(current: Published) -> dict[tuple[str, ...], float]:
    found = dict.fromkeys(("none", "ingress", "egress", "both", "audit-ingress", "audit-egress", "audit-both"), 0.0)
    for endpoint in current.view.endpoints:
        policy = current.policies[endpoint.id]
        word = _word(policy)
        found[f"audit-{word}" if endpoint.audit and word != "none" else word] += 1
    return {(name,): count for name, count in found.items()}


def _word(policy: EndpointPolicy) -> str:
    return {
        (False, False): "none",
        (True, False): "ingress",
        (False, True): "egress",
        (True, True): "both",
    }[_governed(policy.ingress), _governed(policy.egress)]


def _governed(policy: DirectionPolicy | None) -> bool:
    return policy is not None and policy.governed


def _identities(current: Published) -> dict[tuple[str, ...], float]:
    found: Counter[tuple[str, ...]] = Counter()
    for one in current.view.identities.values():
        reserved = any(label.startswith("reserved:") for label in one.labels.text)
        found[("cidr" if one.cidr else "reserved" if reserved else "cluster_local",)] += 1
    return dict(found)


def _redirects(current: Published) -> dict[tuple[str, ...], float]:
    """Per endpoint, direction and entry."""
    found: Counter[tuple[str, ...]] = Counter({("http",): 0})
    for policy in current.policies.values():
        for way in (policy.ingress, policy.egress):
            for entry in way.entries if way is not None else ():
                if entry.action is Action.REDIRECT and entry.l7 is not None:
                    found[(kind_of(entry.l7).key,)] += 1
    return dict(found)
