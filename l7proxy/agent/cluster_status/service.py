"""Runs the reports of this node, the election, and, while this agent leads, the writing of status and Events.

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ClusterStatus(…).run())

It only reads what the reconciler has published. The API server may be out of reach, or refuse every request: that is
logged once, tried again with growing pauses, and shown by `l7proxy status`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final

from l7proxy.agent.cluster_status import leases
from l7proxy.agent.cluster_status.clock import micro_time
from l7proxy.agent.cluster_status.election import Election, Wait
from l7proxy.agent.cluster_status.follow import Listed, Retry, follow
from l7proxy.agent.cluster_status.leader import Leader
from l7proxy.agent.cluster_status.pace import spread
from l7proxy.agent.cluster_status.summary import BUCKETS, DIGEST, Summary, digests, exceptions, to_text
from l7proxy.agent.dataplane.reconciler import KernelState, Published
from l7proxy.cluster.derived import Node
from l7proxy.cluster.policy_status import PolicyStatus
from l7proxy.errors import ApiError, ConfigError
from l7proxy.sources.kubernetes.connection import Connection

log = logging.getLogger(__name__)

LOOK: Final = 0.25
"""Seconds between looks at what this agent enforces: no request, and nothing is computed unless it has changed."""
RESTART: Final = 60.0
RELEASE: Final = 2.0
"""Seconds that giving up the leader's Lease may take at the end."""
NOTHING: Final = (bytes(DIGEST),) * BUCKETS

Connect = Callable[[], AbstractAsyncContextManager[Connection]]


@dataclass(frozen=True, slots=True)
class Observed:
    """What this agent enforces: the newest input, the kernel's state, the revisions of the connected workers, and
    whether the node is in audit mode."""

    current: Published | None
    kernel: KernelState
    workers: tuple[int, ...]
    audit: bool = False

    def same(self, other: Observed) -> bool:
        """Whether a summary of it is the same, too."""
        return (
            self.current is other.current
            and (self.kernel.revision, self.kernel.error) == (other.kernel.revision, other.kernel.error)
            and self.workers == other.workers
        )


def summarise(
    now: Observed,
    before: Summary | None,
    digests_of: Callable[[tuple[PolicyStatus, ...]], tuple[bytes, ...]] = digests,
) -> Summary | None:
    """What to report. `before`: the last report, which stays while a newer revision is on its way to the kernel.
    `digests_of`: `digests`, with a memory."""
    current, kernel = now.current, now.kernel
    if current is None:
        return None
    if kernel.error:
        digests_before = before.digests if before else NOTHING
        exceptions_before = before.exceptions if before else {}
        return Summary(digests_before, exceptions_before, kernel.error, _l7(current, now), now.audit)
    if kernel.revision != current.revision:
        return before
    view = current.view
    return Summary(
        digests_of(view.judged), exceptions(view.judged, view.policies), l7=_l7(current, now), audit=now.audit
    )


def _l7(current: Published, now: Observed) -> str:
    if not current.snapshots.steers or any(revision >= now.kernel.revision for revision in now.workers):
        return ""
    return "no worker has the newest policy" if now.workers else "no worker runs"


class ClusterStatus:
    """`look` reads what this agent enforces. `namespace`: l7proxy's own, that of its Leases. `connect` opens a
    connection to the API server."""

    def __init__(self, *, node: str, namespace: str, look: Callable[[], Observed], connect: Connect) -> None:
        self._node = node
        self._namespace = namespace
        self._look = look
        self._connect = connect
        self._election = Election(node, f"{node}_{token_hex(5)}")
        self._lease_seen = asyncio.Event()
        self._leading, self._following = asyncio.Event(), asyncio.Event()
        self._seen: Observed | None = None
        self._last: Summary | None = None
        self._digests = Node(digests)
        self._reported = ""
        self._problems: dict[str, str] = {}

    def report(self) -> dict[str, Any]:
        """For `l7proxy status`."""
        return {
            "lease": f"{self._namespace}/{leases.name_of(self._node)}",
            "reported": bool(self._reported),
            "leader": self._election.holder.rpartition("_")[0],
            "leading": self._leading.is_set(),
            "problems": sorted(set(self._problems.values())),
        }

    async def run(self) -> None:
        """Forever. A fault of this part ends in the log: it must not end the agent, which enforces."""
        while True:
            try:
                async with self._connect() as api, asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._report(api), name="status of the node")
                    tasks.create_task(self._follow_leader(api), name="leader's lease")
                    tasks.create_task(self._elect(api), name="election")
                    tasks.create_task(self._lead(api), name="status of policies")
            except ConfigError as error:
                log.warning("status in the cluster: %s", error)
            except Exception:
                log.exception("status in the cluster: an internal error; enforcement is not affected")
            await asyncio.sleep(RESTART * random.uniform(0.5, 1.5))

    # --- this node

    async def _report(self, api: Connection) -> None:
        """Write our node's Lease whenever its summary changes: not at the same time as all other nodes."""
        retry, owner = Retry("report of this node", self._problems), None
        while True:
            text = await self._summary()
            if text in ("", self._reported):
                await asyncio.sleep(LOOK)
                continue
            await asyncio.sleep(random.uniform(0.0, spread(self._nodes)))
            text = await self._summary()
            try:
                owner = owner or await leases.owner(api, self._node)
                await leases.publish(api, self._namespace, self._node, text, micro_time(), owner)
            except ApiError as error:
                await asyncio.sleep(retry.failed(error))
            else:
                retry.well()
                self._reported = text
                await asyncio.sleep(LOOK)

    async def _summary(self) -> str:
        """What to report now; empty as long as nothing is known."""
        now = self._look()
        if self._seen is None or not now.same(self._seen):
            self._seen, self._last = now, await asyncio.to_thread(summarise, now, self._last, self._digests)
        return to_text(self._last) if self._last is not None else ""

    @property
    def _nodes(self) -> int:
        current = self._seen.current if self._seen is not None else None
        return len(current.view.nodes) if current is not None else 0

    # --- the leader's Lease

    async def _follow_leader(self, api: Connection) -> None:
        path = leases.leases(self._namespace)
        events = follow(api, path, leases.LEADER_LEASE, Retry("election of the writer of status", self._problems))
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Listed):
                    found = leases.record_in(event.objects[0]) if event.objects else leases.NO_RECORD
                else:
                    found = leases.NO_RECORD if event.deleted else leases.record_in(event.object)
                self._election.observe(found, _time())
                self._lease_seen.set()

    async def _elect(self, api: Connection) -> None:
        try:
            while True:
                await self._step(api)
        finally:
            self._set_leading(False)
            record = self._election.release()
            if record is not None:
                with suppress(ApiError, TimeoutError):
                    async with asyncio.timeout(RELEASE):
                        await leases.write(api, self._namespace, record, micro_time())

    async def _step(self, api: Connection) -> None:
        began = _time()
        self._show_leading(began)
        action = self._election.next(began)
        if isinstance(action, Wait):
            self._lease_seen.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(action.until, began + 5.0)):
                    await self._lease_seen.wait()
            return
        try:
            written = await leases.write(api, self._namespace, action.record, micro_time())
        except ApiError as error:
            self._election.failed(_time())
            if error.status != 409:
                log.info("cannot write the leader's lease: %s", error)
        else:
            self._election.written(written, began)
        self._show_leading(_time())

    def _show_leading(self, now: float) -> None:
        self._set_leading(self._election.leading(now))

    def _set_leading(self, leading: bool) -> None:
        if leading and not self._leading.is_set():
            log.info("this agent writes the status of policies")
            self._following.clear()
            self._leading.set()
        elif not leading and self._leading.is_set():
            log.info("this agent no longer writes the status of policies")
            self._leading.clear()
            self._following.set()

    # --- the leader's work

    async def _lead(self, api: Connection) -> None:
        while True:
            await self._leading.wait()
            leader = Leader(
                api,
                node=self._node,
                namespace=self._namespace,
                look=lambda: self._look().current,
                leading=lambda: self._election.leading(_time()),
                problems=self._problems,
            )
            async with asyncio.TaskGroup() as tasks:
                work = tasks.create_task(leader.run(), name="leader")
                await self._following.wait()
                work.cancel()


def _time() -> float:
    return asyncio.get_running_loop().time()
