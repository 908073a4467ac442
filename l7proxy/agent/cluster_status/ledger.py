"""The leader's book of what each node enforces: per policy, the nodes that do and those that do not. Pure.

A report is compared bucket by bucket with what the policies are now and with their last HISTORY contents: so a node
that is one change behind still counts for the policies that did not change. The cost of a report does not depend on the
number of policies, nor that of a policy on the number of nodes.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from l7proxy.agent.cluster_status.summary import BUCKETS, Entries, Summary, bucket_of, digest

HISTORY: Final = 16
NAMED: Final = 3
"""Nodes of one policy that are named, with the reason."""

NO_REPORT: Final = "its agent has not reported yet"
UNREADABLE: Final = "its agent is of another version"
OTHER_VERSION: Final = "it still enforces another version"
AUDIT: Final = "audit mode: it refuses nothing"


Named = tuple[tuple[str, str], ...]
"""Nodes, each with a reason."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What the nodes make of one policy. `missing`: at most NAMED nodes that do not enforce it, and why; `l7_missing`:
    the same for those that enforce it but serve no HTTP rules. `enforcing` counts nodes, `l7` those of them that serve
    HTTP rules, too."""

    nodes: int
    enforcing: int
    l7: int
    missing: Named = ()
    l7_missing: Named = ()


class Ledger:
    """Used by one event loop."""

    def __init__(self) -> None:
        self._nodes: frozenset[str] = frozenset()
        self._order: tuple[str, ...] = ()
        self._reports: dict[str, Summary | None] = {}
        self._current: tuple[Entries, ...] = tuple({} for _ in range(BUCKETS))
        self._known: tuple[OrderedDict[bytes, Entries], ...] = tuple(OrderedDict() for _ in range(BUCKETS))
        self._counts: tuple[Counter[bytes], ...] = tuple(Counter() for _ in range(BUCKETS))
        self._l7_counts: tuple[Counter[bytes], ...] = tuple(Counter() for _ in range(BUCKETS))
        self._named: dict[tuple[int, frozenset[bytes]], tuple[Named, Named]] = {}
        self._exceptions: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self.policies(self._current)

    def policies(self, now: tuple[Entries, ...]) -> None:
        """The policies as they are now: `summary.entries` of them."""
        self._named.clear()
        before, self._current = self._current, now
        for known, old, content in zip(self._known, before, now, strict=True):
            if known and old == content:
                continue
            key = digest(content)
            known[key] = content
            known.move_to_end(key)
            if len(known) > HISTORY:
                known.popitem(last=False)

    def nodes(self, names: Iterable[str]) -> None:
        """The nodes of the cluster; reports of others do not count."""
        names = frozenset(names)
        if names == self._nodes:
            return
        self._named.clear()
        before, self._nodes, self._order = self._nodes, names, tuple(sorted(names))
        for node in before ^ names:
            if node in self._reports:
                self._count(node, self._reports[node], 1 if node in names else -1)

    def report(self, node: str, summary: Summary | None) -> None:
        """What a node says. None: it has an unreadable report."""
        self.forget(node)
        self._named.clear()
        self._reports[node] = summary
        if node in self._nodes:
            self._count(node, summary, 1)

    def forget(self, node: str) -> None:
        """The node has no report any more."""
        if node in self._reports:
            self._named.clear()
            summary = self._reports.pop(node)
            if node in self._nodes:
                self._count(node, summary, -1)

    def only(self, nodes: Iterable[str]) -> None:
        """All other nodes have no report."""
        for node in self._reports.keys() - set(nodes):
            self.forget(node)

    def _count(self, node: str, summary: Summary | None, step: int) -> None:
        if summary is None or summary.audit:
            return
        for each in (self._counts, *(() if summary.l7 else (self._l7_counts,))):
            for counts, key in zip(each, summary.digests, strict=True):
                counts[key] += step
                if not counts[key]:
                    del counts[key]
        for uid, why in summary.exceptions.items():
            if step > 0:
                self._exceptions[uid][node] = why
            elif self._exceptions[uid].pop(node, None) is not None and not self._exceptions[uid]:
                del self._exceptions[uid]

    def tally(self, uid: str) -> Tally:
        """KeyError when the policy is not known."""
        bucket = bucket_of(uid)
        entry = self._current[bucket][uid]
        good = {key for key, content in self._known[bucket].items() if content.get(uid) == entry}
        refused = {node: why for node, why in self._exceptions.get(uid, {}).items() if self._has(node, bucket, good)}
        enforcing = sum(self._counts[bucket][key] for key in good) - len(refused)
        l7 = sum(self._l7_counts[bucket][key] for key in good) - sum(self._serves(node) for node in refused)
        total = len(self._nodes)
        if enforcing == total == l7:
            return Tally(total, total, total)
        key = bucket, frozenset(good)
        if refused or key not in self._named:
            lagging = self._lagging(bucket, good, refused) if enforcing < total else iter(())
            silent = self._silent(bucket, good) if l7 < enforcing else iter(())
            named = tuple(islice(lagging, NAMED)), tuple(islice(silent, NAMED))
            if refused:
                return Tally(total, enforcing, l7, *named)
            self._named[key] = named
        return Tally(total, enforcing, l7, *self._named[key])

    def _has(self, node: str, bucket: int, good: set[bytes]) -> bool:
        summary = self._reports[node]
        return summary is not None and not summary.audit and summary.digests[bucket] in good

    def _serves(self, node: str) -> bool:
        summary = self._reports[node]
        return summary is not None and not summary.l7

    def _lagging(self, bucket: int, good: set[bytes], refused: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        for node in self._order:
            summary = self._reports.get(node)
            if node in refused:
                yield node, refused[node]
            elif summary is None:
                yield node, UNREADABLE if node in self._reports else NO_REPORT
            elif summary.audit:
                yield node, AUDIT
            elif summary.digests[bucket] not in good:
                yield node, f"kernel: {summary.kernel}" if summary.kernel else OTHER_VERSION

    def _silent(self, bucket: int, good: set[bytes]) -> Iterator[tuple[str, str]]:
        for node in self._order:
            summary = self._reports.get(node)
            if summary is not None and summary.l7 and self._has(node, bucket, good):
                yield node, summary.l7
