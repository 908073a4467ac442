"""A second set of policies that is judged on the traffic of this node, and never enforced (setting `shadow-policies`).

A sink: it reads the ring in a task and thread of its own, so neither traffic nor other readers wait for it, and what it
is too slow for is lost and counted, as with other sinks. The directory is read again when its files change; as long as
they cannot be read, the last ones that could be stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final

from l7proxy.errors import ConfigError
from l7proxy.flows.event import Event
from l7proxy.setting_definitions import Settings
from l7proxy.settings import derived
from l7proxy.simulate.recorded import Judge
from l7proxy.simulate.shadow import Shadow
from l7proxy.sources.files.scan import load

CHECK: Final = 2.0
"""Seconds between two looks at the files, while flows come."""

Key = tuple[str, str, str]
"""(would, direction, policy)"""


class ShadowSink:
    """Counts what the shadow policies would change. `counts` may be read from another thread."""

    def __init__(self, settings: Settings, *, now: Callable[[], float] = monotonic) -> None:
        self.lost = 0
        self.problem = ""
        self.directory = Path(settings.shadow_policies)
        if not self.directory.is_dir():
            raise ConfigError(f"shadow-policies: {self.directory}: no such directory")
        self._settings = settings
        self._now = now
        self._counts: Counter[Key] = Counter()
        self._shadow: Shadow | None = None
        self._files: Mapping[str, tuple[int, int]] | None = None
        self._next_look = 0.0

    @property
    def counts(self) -> dict[Key, int]:
        """Flows by (would, direction, policy)."""
        return dict(self._counts)

    def report(self) -> dict[str, Any]:
        """For `status`."""
        would: Counter[str] = Counter()
        for (word, _, _), count in self.counts.items():
            would[word] += count
        return {"policies": str(self.directory), "problem": self.problem, "would": dict(would)}

    def consume(self, events: Sequence[Event]) -> None:
        self._look()
        if self._shadow is None:
            self.lost += sum(event.lost == 0 for event in events)
            return
        flows = [flow for event in events if (flow := event.flow()) is not None]
        for flow, found in self._shadow.see(flows):
            self._counts[found.would, flow.traffic_direction.lower() or "unknown", found.policy] += 1

    def hurry(self) -> None:
        """Counting waits for nobody."""

    def close(self) -> None: ...

    def _look(self) -> None:
        """Read the policies if their files have changed."""
        if self._now() < self._next_look:
            return
        self._next_look = self._now() + CHECK
        files = _signature(self.directory)
        if files == self._files:
            return
        self._files = files
        changes, problems = load([self.directory], derived.policy_options(self._settings))
        if problems:
            self.problem = f"shadow-policies: {problems[0]}"
            return
        self.problem = ""
        self._shadow = Shadow(Judge(changes, self._settings, queries_recorded=self._settings.flow_query))


def _signature(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file, through links: kubelet swaps the link of a ConfigMap."""
    found = {}
    for path in sorted(directory.rglob("*")):
        try:
            status = path.stat()
        except OSError:
            continue  # it went away, and the next look sees the rest
        found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found
