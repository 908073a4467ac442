"""The series of one metric. Their number is bounded, since clients choose some of the values (methods, ports, peers).

A series beyond the limit is folded: the values of its open labels, those without a fixed vocabulary, become
`overflow`. So no event goes uncounted, and sums stay exact.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, TypeAlias

from prometheus_client.core import CounterMetricFamily, Exemplar, HistogramMetricFamily, Metric

OVERFLOW: Final = "overflow"
BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds of Prometheus' default buckets; the last one, +Inf, is not listed."""
KEPT_AFTER: Final = 60.0
"""Seconds for which the series of a deleted pod can still be scraped."""

NamedPod: TypeAlias = tuple[str, str, str]
"""(address, namespace, name)"""
Alive: TypeAlias = Callable[[NamedPod], bool]


class Series:
    """One set of label values. `buckets` and `total` (seconds) are used by histograms only.

    `exemplars`: the newest traced event, of a histogram for each bucket; None if they are not wanted.
    """

    __slots__ = ("buckets", "count", "exemplars", "folded", "gone", "pods", "total", "values")

    def __init__(
        self, values: tuple[str, ...], pods: tuple[NamedPod, ...], buckets: int, folded: bool, exemplars: bool
    ) -> None:
        self.values = values
        self.pods = pods
        self.count = 0
        self.buckets = [0] * buckets
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] | None = {} if exemplars else None
        self.folded = folded
        self.gone: float | None = None
        """Since when one of its pods does not exist."""

    def observe(self, bucket: int, seconds: float) -> None:
        """Of a histogram: count one more, in this bucket."""
        self.count += 1
        self.total += seconds
        self.buckets[bucket] += 1

    def show(self, trace_id: str, value: float, time_ns: int, bucket: int = 0) -> None:
        """Keep a traced event as an exemplar, if they are wanted. `value`: seconds in a histogram, 1 in a counter."""
        if self.exemplars is not None:
            self.exemplars[bucket] = Exemplar({"traceID": trace_id}, value, time_ns / 1e9)


class Family:
    """A counter, or with `bounds` a histogram. `open_labels`: those that are folded beyond `limit` series.
    `pod_labels`: those whose value may belong to one pod. `exemplars`: show trace ids, in the OpenMetrics format."""

    def __init__(
        self,
        name: str,
        about: str,
        labels: Sequence[str] = (),
        *,
        open_labels: Iterable[str] = (),
        pod_labels: Iterable[str] = (),
        limit: int = 10_000,
        bounds: Sequence[float] = (),
        exemplars: bool = False,
    ) -> None:
        self.name = name
        self.bounds = tuple(bounds)
        self._about = about
        self._labels = tuple(labels)
        self._open = frozenset(open_labels)
        self._of_pods = tuple(place for place, label in enumerate(labels) if label in frozenset(pod_labels))
        self._limit = limit
        self._exemplars = exemplars
        self._series: dict[tuple[str, ...], Series] = {}

    def series(self, values: tuple[str, ...], pods: tuple[NamedPod, ...] = ()) -> Series:
        """The series with these values, made if it is new. `pods`: the ends of the flow that are pods."""
        found = self._series.get(values)
        if found is not None:
            return found
        pods = tuple(pod for pod in pods if self._names(values, pod))
        folded = len(self._series) >= self._limit and bool(self._open)
        if folded:
            values = tuple(
                OVERFLOW if label in self._open else value for label, value in zip(self._labels, values, strict=True)
            )
            pods = ()
            found = self._series.get(values)
        if found is None:
            buckets = len(self.bounds) + 1 if self.bounds else 0
            found = self._series[values] = Series(values, pods, buckets, folded, self._exemplars)
        return found

    def _names(self, values: tuple[str, ...], pod: NamedPod) -> bool:
        address, namespace, name = pod
        return any(values[place] in (address, name, f"{namespace}/{name}") for place in self._of_pods)

    def observe(self, values: tuple[str, ...], seconds: float) -> None:
        """Of a histogram: count one more."""
        self.series(values).observe(bisect_left(self.bounds, seconds), seconds)

    @property
    def folded(self) -> int:
        """How much was counted in folded series."""
        return sum(one.count for one in self._series.values() if one.folded)

    def forget(self, alive: Alive, now: float) -> bool:
        """Remove the series of pods that have not existed for KEPT_AFTER seconds. Whether there were any."""
        stale = [one for one in self._series.values() if one.pods and _stale(one, alive, now)]
        for one in stale:
            del self._series[one.values]
        return bool(stale)

    def collect(self) -> Metric:
        """What is exposed."""
        if not self.bounds:
            counter = CounterMetricFamily(self.name, self._about, labels=self._labels)
            for one in self._series.values():
                counter.add_metric(one.values, one.count, exemplar=(one.exemplars or {}).get(0))
            return counter
        histogram = HistogramMetricFamily(self.name, self._about, labels=self._labels)
        names = [*map(str, self.bounds), "+Inf"]
        for one in self._series.values():
            histogram.add_metric(one.values, list(_buckets(names, one)), one.total)
        return histogram


def _buckets(names: Sequence[str], one: Series) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
    exemplars = one.exemplars or {}
    for place, (name, count) in enumerate(zip(names, accumulate(one.buckets), strict=True)):
        yield (name, count, exemplars[place]) if place in exemplars else (name, count)


def _stale(one: Series, alive: Alive, now: float) -> bool:
    if all(map(alive, one.pods)):
        one.gone = None
        return False
    if one.gone is None:
        one.gone = now
    return now - one.gone >= KEPT_AFTER
