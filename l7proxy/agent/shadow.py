"""A second set of policies that is judged on the traffic of this node, and never enforced (setting `shadow-policies`).

It stands between two rings: the recorder writes the first, all readers of flows read the second. It judges in a thread
of its own, so traffic does not wait for it; what it is too slow for is lost, and told as any loss. A flow that would
have another verdict gets the extension `shadow`. The directory is read again when its files change; as long as
they cannot be read, the last ones that could be stay.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Final

from l7proxy.errors import ConfigError
from l7proxy.flows.event import Event, Lost
from l7proxy.flows.flow import extended
from l7proxy.flows.ring import BATCH, Reader, Ring
from l7proxy.setting_definitions import Settings
from l7proxy.settings import derived
from l7proxy.simulate.recorded import Judge
from l7proxy.simulate.shadow import Shadow
from l7proxy.sources.files.scan import load

log = logging.getLogger(__name__)

EXTENSION: Final = "shadow"
"""The name of the field in a flow's extensions: would, direction, policy, reason."""
CHECK: Final = 2.0
"""Seconds between two looks at the files, while flows come."""

Key = tuple[str, str, str]
"""(would, direction, policy)"""


class ShadowPolicies:
    """Counts and marks what the shadow policies would change. `counts` may be read from another thread."""

    def __init__(self, settings: Settings, *, now: Callable[[], float] = monotonic) -> None:
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

    @asynccontextmanager
    async def between(self, recorded: Ring, read: Ring) -> AsyncIterator[None]:
        """Pass events on from the one ring to the other; at the end of the block, what has come by then, too."""
        reader, loop = Reader(recorded, start=recorded.oldest), asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="shadow") as thread:
            under_way: list[asyncio.Future[Sequence[Event]]] = []

            async def follow() -> None:
                while True:
                    batch = await reader.next_batch(BATCH)
                    under_way.append(loop.run_in_executor(thread, self.judged, batch))
                    _write(await asyncio.shield(under_way[0]), read)
                    under_way.clear()

            try:
                async with asyncio.TaskGroup() as tasks:
                    following = tasks.create_task(follow(), name="shadow policies")
                    try:
                        yield
                    finally:
                        following.cancel()
            finally:
                last = [*reader.batch(recorded.capacity), *reader.rest()]
                for judging in (*under_way, loop.run_in_executor(thread, self.judged, last)):
                    _write(await judging, read)

    def judged(self, events: Sequence[Event]) -> Sequence[Event]:
        """The same events; those that would have another verdict have the extension. A fault marks none."""
        try:
            return self._judged(events)
        except Exception as error:
            if not self.problem:
                log.exception("shadow-policies: flows pass without a judgement")
            self.problem = f"shadow-policies: {type(error).__name__}: {error}"
            self._counts["unjudged", "unknown", ""] += sum(event.lost == 0 for event in events)
            return events

    def _judged(self, events: Sequence[Event]) -> Sequence[Event]:
        self._look()
        if self._shadow is None:
            self._counts["unjudged", "unknown", ""] += sum(event.lost == 0 for event in events)
            return events
        made = list(events)
        flows = {place: flow for place, event in enumerate(events) if (flow := event.flow()) is not None}
        place_of = {id(flow): place for place, flow in flows.items()}
        for flow, found in self._shadow.see(flows.values()):
            self._counts[found.would, flow.traffic_direction.lower() or "unknown", found.policy] += 1
            if found.change is not None:
                made[place_of[id(flow)]] = extended(flow, {EXTENSION: found.to_json()})
        return made

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


def _write(events: Sequence[Event], ring: Ring) -> None:
    """Flows between two losses are written at once."""
    start = 0
    for place, event in enumerate(events):
        if isinstance(event, Lost):
            ring.extend(events[start:place])
            ring.append_lost(event.lost, time_ns=event.time_ns, source=event.source)
            start = place + 1
    ring.extend(events[start:])


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
