"""Counts flows: a sink for the ring, and what a scrape reads.

All flows of one template and status count in the same series. So an event costs a lookup of its template and an
addition, without making its flow; series get the sums when they are read.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric

from l7proxy.flows.event import Event, Lost
from l7proxy.flows.flow import Flow
from l7proxy.flows.ring import NOT_DELIVERED, OVERTAKEN, RATE_LIMITED
from l7proxy.flows.template import FlowTemplate, TemplatedFlow
from l7proxy.metrics.contexts import ends
from l7proxy.metrics.families import BOUNDS, Alive, Family, NamedPod, Series
from l7proxy.metrics.flows import Registry
from l7proxy.metrics.options import Metric as Wanted

BOUNDS_NS: Final = tuple(round(bound * 1e9) for bound in BOUNDS)
REMEMBERED: Final = 8192
"""Bindings that are kept: a pod can cause many templates, and a server many statuses."""


class Binding:
    """The series of all flows of one template and status, and what they have not been given yet."""

    __slots__ = ("buckets", "count", "latency_ns", "series", "timed", "traced")

    def __init__(self, series: Sequence[Series], timed: Sequence[Series]) -> None:
        self.series = series
        self.timed = timed
        self.count = 0
        self.latency_ns = 0
        self.buckets = [0] * (len(BOUNDS) + 1) if timed else []
        self.traced: dict[int, TemplatedFlow] | None = None
        """The newest traced flow of each bucket, where one of the series shows exemplars."""
        if any(one.exemplars is not None for one in (*series, *timed)):
            self.traced = {}

    def settle(self) -> None:
        if not self.count:
            return
        for one in self.series:
            one.count += self.count
        for one in self.timed:
            one.count += self.count
            one.total += self.latency_ns / 1e9
            for place, count in enumerate(self.buckets):
                one.buckets[place] += count
        self.count = self.latency_ns = 0
        if self.buckets:
            self.buckets = [0] * len(self.buckets)
        if self.traced:
            for bucket, event in self.traced.items():
                _show(self.series, self.timed, event.trace_id, event.latency_ns, event.time_ns, bucket)
            self.traced.clear()


class FlowMetrics:
    """A sink (`flows/sinks/sink`) and a collector of prometheus_client, each of them in a thread of its own."""

    def __init__(
        self,
        metrics: Sequence[Wanted],
        *,
        limit: int,
        alive: Alive = lambda pod: True,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self.lost = 0
        self.problem = ""
        self._registry = Registry(metrics, limit=limit)
        self._alive = alive
        self._now = now
        self._lock = threading.Lock()
        self._bindings: dict[tuple[FlowTemplate, int], Binding] = {}
        self._missed = Family("hubble_lost_events", "Events that were lost before they were counted.", ("source",))
        for source in (NOT_DELIVERED, OVERTAKEN, RATE_LIMITED):
            self._missed.series((source.lower(),))

    def consume(self, events: Sequence[Event]) -> None:
        """Hot: once per event."""
        with self._lock:
            bindings = self._bindings
            for event in events:
                if type(event) is TemplatedFlow:
                    binding = bindings.get((event.shape, event.status))
                    if binding is None:
                        binding = self._bind(event)
                    binding.count += 1
                    bucket = 0
                    if binding.timed:
                        latency = event.latency_ns
                        bucket = bisect_left(BOUNDS_NS, latency)
                        binding.latency_ns += latency
                        binding.buckets[bucket] += 1
                    if binding.traced is not None and event.trace_id:
                        binding.traced[bucket] = event
                else:
                    self._count(event)

    def add(self, flow: Flow, times: int) -> None:
        """Count what has no event of its own: the kernel's rate limit suppressed it. From any thread."""
        with self._lock:
            for one in self._series(flow)[0]:
                one.count += times

    def hurry(self) -> None:
        """Counting waits for nobody."""

    def close(self) -> None: ...

    def collect(self) -> Iterator[Metric]:
        """What is exposed. Removes the series of pods that are gone."""
        with self._lock:
            self._settle()
            now = self._now()
            for family in self._registry.families:
                if family.forget(self._alive, now):
                    self._bindings.clear()  # they refer to removed series
            found = [family.collect() for family in (*self._registry.families, self._missed)]
            folded = CounterMetricFamily(
                "l7proxy_metrics_folded", "Counted in series with the value overflow.", labels=("metric",)
            )
            for family in self._registry.families:
                folded.add_metric((family.name,), family.folded)
        yield from (*found, folded)

    def _settle(self) -> None:
        for binding in self._bindings.values():
            binding.settle()

    def _bind(self, event: TemplatedFlow) -> Binding:
        if len(self._bindings) >= REMEMBERED:
            self._settle()
            self._bindings.clear()
        series, timed = self._series(event.flow())
        binding = self._bindings[event.shape, event.status] = Binding(series, timed)
        return binding

    def _count(self, event: Event) -> None:
        if isinstance(event, Lost):
            self._missed.series((event.source.lower(),)).count += event.lost
            return
        flow = event.flow()
        if flow is None:
            return
        series, timed = self._series(flow)
        for one in series:
            one.count += 1
        latency = max(0, int(flow.l7.latency_ns or 0)) if flow.l7 else 0
        bucket = bisect_left(BOUNDS_NS, latency)
        for one in timed:
            one.observe(bucket, latency / 1e9)
        if flow.trace_context is not None and flow.trace_context.parent is not None:
            _show(series, timed, flow.trace_context.parent.trace_id, latency, flow.time_ns, bucket)

    def _series(self, flow: Flow) -> tuple[list[Series], list[Series]]:
        """(counters, histograms)"""
        counters: list[Series] = []
        histograms: list[Series] = []
        pods = _pods(flow)
        for counter in self._registry.counters:
            for family, values in counter(flow):
                (histograms if family.bounds else counters).append(family.series(values, pods))
        return counters, histograms


def _show(
    series: Iterable[Series], timed: Iterable[Series], trace_id: str, latency_ns: int, time_ns: int, bucket: int
) -> None:
    for one in series:
        one.show(trace_id, 1, time_ns)
    for one in timed:
        one.show(trace_id, latency_ns / 1e9, time_ns, bucket)


def _pods(flow: Flow) -> tuple[NamedPod, ...]:
    found = [(end.address, end.endpoint.namespace, end.endpoint.pod_name) for end in ends(flow)]
    return tuple(pod for pod in found if pod[2])
