"""The work of the one agent that leads: reads the Leases of all nodes, writes conditions and Events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import aclosing
from typing import Final

from l7proxy.agent.cluster_status import leases, writer
from l7proxy.agent.cluster_status.clock import micro_time, second_time
from l7proxy.agent.cluster_status.conditions import WITH_STATUS, Verdict, verdict
from l7proxy.agent.cluster_status.follow import Listed, Retry, follow
from l7proxy.agent.cluster_status.ledger import Ledger
from l7proxy.agent.cluster_status.pace import spread
from l7proxy.agent.cluster_status.plan import Plan
from l7proxy.agent.cluster_status.summary import entries
from l7proxy.agent.dataplane.reconciler import Published
from l7proxy.cluster.policy_status import PolicyStatus
from l7proxy.errors import ApiError
from l7proxy.sources.kubernetes.connection import Connection

log = logging.getLogger(__name__)

LOOK: Final = 0.25
"""Seconds between looks at what has changed."""
PASS: Final = 1.0
"""Seconds between looks at all policies, at least."""
SHARE: Final = 10.0
"""A look at all policies takes at most one part in SHARE of the time."""
TURN: Final = 100
"""Policies that are looked at before other tasks have their turn."""
REFUSED: Final = frozenset((404, 409, 422))
"""Answers that concern one policy: it is gone, another one has its name, or its CRD has no such status."""


class Leader:
    """`look`: what this agent has read. `leading`: whether it may still write."""

    def __init__(
        self,
        api: Connection,
        *,
        node: str,
        namespace: str,
        look: Callable[[], Published | None],
        leading: Callable[[], bool],
        problems: MutableMapping[str, str],
    ) -> None:
        self._api = api
        self._node = node
        self._namespace = namespace
        self._look = look
        self._leading = leading
        self._problems = problems
        self._ledger = Ledger()
        self._plan = Plan(self._verdict)
        self._seen: Published | None = None
        self._faults: Mapping[str, str] = {}
        self._audited: frozenset[str] = frozenset()
        self._dirty = True
        self._listed = asyncio.Event()
        self._tokens = writer.Bucket()

    async def run(self) -> None:
        await self._adopt()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_nodes(), name="leases of nodes")
            tasks.create_task(self._write(), name="conditions")

    async def _adopt(self) -> None:
        """Begin where an earlier leader ended: what is there already is not written again."""
        for kind in writer.PLURALS:
            retry = Retry(f"status of {kind}", self._problems)
            while True:
                try:
                    self._plan.adopt(await writer.written(self._api, kind))
                except ApiError as error:
                    await asyncio.sleep(retry.failed(error))
                else:
                    retry.well()
                    break

    async def _follow_nodes(self) -> None:
        path = leases.leases(self._namespace)
        events = follow(self._api, path, leases.NODE_LEASES, Retry("leases of nodes", self._problems))
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Listed):
                    reports = dict(map(leases.summary_in, event.objects))
                    self._ledger.only(reports)
                    for node, summary in reports.items():
                        self._ledger.report(node, summary)
                    self._listed.set()
                else:
                    node, summary = leases.summary_in(event.object)
                    if event.deleted:
                        self._ledger.forget(node)
                    else:
                        self._ledger.report(node, summary)
                self._dirty = True

    def _verdict(self, policy: PolicyStatus) -> Verdict:
        fault = self._faults.get(policy.file, "") if policy.file else ""
        return verdict(policy, self._ledger.tally(policy.uid), fault, audit=policy.namespace in self._audited)

    async def _write(self) -> None:
        retry = Retry("status of policies", self._problems)
        await self._listed.wait()
        loop, next_pass = asyncio.get_running_loop(), 0.0
        while True:
            await self._read()
            now = loop.time()
            if self._dirty and now >= next_pass:
                self._dirty = False
                await self._consider_all()
                next_pass = now + max(PASS, SHARE * (loop.time() - now))
            found = self._plan.next(loop.time())
            if isinstance(found, float):
                await asyncio.sleep(min(LOOK, max(0.0, found - loop.time())))
                continue
            await self._tokens.wait()
            if not self._leading():
                await asyncio.sleep(LOOK)
                continue
            try:
                await self._tell(*found)
            except ApiError as error:
                await asyncio.sleep(retry.failed(error))
            else:
                retry.well()

    async def _read(self) -> None:
        """Take over what this agent has read since."""
        current = self._look()
        if current is None or current is self._seen:
            return
        seen, self._seen = self._seen, current
        view = current.view
        if seen is None or view.nodes != seen.view.nodes:
            self._ledger.nodes(view.nodes)
            self._plan.reports_take = spread(len(view.nodes))
            self._dirty = True
        if view.audited != self._audited:
            self._audited = view.audited
            self._dirty = True
        if seen is None or current.source.problems != seen.source.problems:
            self._faults = {
                one.file: f"{one.field}: {one.message}" if one.field else one.message
                for one in current.source.problems
                if one.file
            }
            self._dirty = True
        if seen is None or view.judged is not seen.view.judged:
            self._ledger.policies(await asyncio.to_thread(entries, view.judged))
            self._plan.policies(view.judged)
            self._dirty = True

    async def _consider_all(self) -> None:
        now = asyncio.get_running_loop().time()
        for number, uid in enumerate(self._plan.uids):
            self._plan.consider(uid, now)
            if not number % TURN:
                await asyncio.sleep(0)

    async def _tell(self, policy: PolicyStatus, verdict: Verdict) -> None:
        """Write one verdict. ApiError: not now."""
        now = second_time()
        try:
            if policy.kind in WITH_STATUS:
                dated = self._plan.dated(policy.uid, verdict, now)
                await writer.apply_status(self._api, policy, verdict, dated)
            else:
                await writer.send_event(self._api, policy, verdict.worst, micro_time(), self._node)
        except ApiError as error:
            if error.status not in REFUSED:
                raise
            log.info("status of %s %s/%s: %s", policy.kind, policy.namespace, policy.name, error)
        self._plan.wrote(policy.uid, verdict, now)
