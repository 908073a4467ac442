"""Keeps workers and kernel in line with the cluster state, and reports which revision is enforced.

One loop: apply changes, scan pod interfaces, render, publish. The order of publishing is defined only here: workers
first, so that each connection that the kernel redirects finds a worker that has the policy. A worker that does not
answer in time is fenced (it serves no client until it has applied the snapshot) and does not delay the kernel. If the
kernel refuses a new state, the previous one stays enforced and the new one is retried. The revision grows only when the
rendered state changes. At last `on_enforced` is called with the enforced state, and whether its rules were restored
after a removal by another program; it ends open connections that are refused now (see revocation).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Protocol

from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.agent.dataplane.render import DesiredState, Tables, render
from l7proxy.agent.dataplane.secondary_networks import SecondaryInterface, secondary_interfaces
from l7proxy.cluster.state import ClusterState, NodeView
from l7proxy.errors import LinkError
from l7proxy.gate.options import DEFAULT_OPTIONS, HttpOptions
from l7proxy.link.messages import PolicySnapshot
from l7proxy.link.server import WorkerState
from l7proxy.model.resources import Change, Delete, EndpointSlice, Pod, Upsert
from l7proxy.policy.compile import Compiler
from l7proxy.policy.tables import EndpointPolicy
from l7proxy.sources.source import SourceHealth
from tproxy_rules.backend import Backend, Installed, KernelError, Suppressed
from tproxy_rules.desired import Desired
from tproxy_rules.desired import Settings as KernelSettings

log = logging.getLogger(__name__)

CHECK: Final = 5.0
"""Seconds between checks of the kernel rules: other programs may have removed them."""
COUNT: Final = 1.0
"""Minimum seconds between reads of the kernel's counters."""
PATIENCE: Final = 3.0
"""Seconds that workers have to apply a snapshot before the kernel is updated anyway."""
EASE: Final = 8.0
"""Pause after a round, in multiples of its duration, before one for changes elsewhere: pods of other nodes change all
the time in a large cluster."""
LONGEST_EASE: Final = 0.25
"""Seconds. For so long an address of another node may have the identity of its last owner, besides the API server's own
delay."""
ELSEWHERE: Final = (Pod, EndpointSlice)
_KINDS_ELSEWHERE: Final = frozenset(kind.__name__ for kind in ELSEWHERE)
FIRST_RETRY: Final = 0.5
LAST_RETRY: Final = 30.0


class Link(Protocol):
    """The part of the agent's link server that publishing needs."""

    async def publish(self, snapshot: PolicySnapshot) -> None: ...
    async def wait_applied(self, revision: int, timeout: float) -> bool: ...  # noqa: ASYNC109 -- the contract's form
    def require(self) -> None: ...
    def workers(self) -> list[WorkerState]: ...


@dataclass(frozen=True)
class Published:
    """One revision: its inputs and its rendered state. `secondary`: interfaces of pods that no policy applies to."""

    revision: int
    view: NodeView
    policies: Mapping[int, EndpointPolicy]
    snapshots: DesiredState
    interfaces: PodInterfaces
    source: SourceHealth
    secondary: tuple[SecondaryInterface, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelState:
    """`revision`: the enforced one; `error`: why a newer one is not enforced; `reasserted`: number of repairs."""

    revision: int = 0
    installed: Installed | None = None
    error: str = ""
    reasserted: int = 0


class Reconciler:
    """Used by one event loop. Blocking work (kernel, compiling) runs in a thread, one call at a time."""

    def __init__(
        self,
        *,
        cluster_state: ClusterState,
        link: Link,
        backend: Backend,
        node: str,
        look: Callable[[], PodInterfaces],
        settings: KernelSettings,
        http: HttpOptions = DEFAULT_OPTIONS,
        on_published: Callable[[Published], None] = lambda published: None,
        on_enforced: Callable[[Desired, bool], None] = lambda snapshot, restored: None,
        on_suppressed: Callable[[Mapping[Suppressed, int]], None] = lambda counts: None,
        on_delay: Callable[[float], None] = lambda seconds: None,
        others: Callable[[], Iterable[Backend]] = tuple,
        check_every: float = CHECK,
        patience: float = PATIENCE,
    ) -> None:
        self._cluster_state = cluster_state
        self._link = link
        self._backend = backend
        self._node = node
        self._look = look
        self._settings = settings
        self._http = http
        self._on_published = on_published
        self._on_enforced = on_enforced
        self._on_suppressed = on_suppressed
        self._on_delay = on_delay
        self._others = others
        self._swept = False
        self._check_every = check_every
        self._patience = patience
        self._compiler = Compiler()
        self._tables = Tables()
        self._inbox: list[Change] = []
        self._received_at: float | None = None
        self._unenforced_since: float | None = None
        self._health = SourceHealth()
        self._dirty = asyncio.Event()
        self._urgent = asyncio.Event()
        """What has changed concerns policies or this node."""
        self._ended = -LONGEST_EASE
        self._new_settings: tuple[KernelSettings, HttpOptions, bool] | None = None
        self._retry = 0.0
        self._sent = 0
        self._digest = ""
        self._counted = -COUNT
        self._began: float | None = None
        self.took = 0.0
        """Duration of the last round in seconds."""
        self.current: Published | None = None
        self.kernel = KernelState()

    @property
    def revision(self) -> int:
        return self.current.revision if self.current is not None else 0

    @property
    def enforced_revision(self) -> int:
        """The newest revision that kernel and all workers enforce; 0 if traffic is redirected and no worker runs."""
        current = self.current
        if current is None:
            return 0
        reached = [worker.revision for worker in self._link.workers()]
        if not reached and current.snapshots.steers:
            return 0
        return min([self.kernel.revision, *reached])

    @property
    def busy(self) -> float:
        """Seconds since the present round began; 0 between rounds."""
        return 0.0 if self._began is None else asyncio.get_running_loop().time() - self._began

    def submit(self, changes: Iterable[Change], health: SourceHealth) -> None:
        """Queue a batch of the source, with the source's health after it. Returns at once."""
        changes = list(changes)
        self._inbox.extend(changes)
        if not all(map(self._is_elsewhere, changes)):
            self._urgent.set()
        if self._received_at is None:
            self._received_at = asyncio.get_running_loop().time()
        self._health = health
        self._dirty.set()

    def configure(self, settings: KernelSettings, http: HttpOptions, *, audit: bool) -> None:
        """Enforce with these settings from the next round on. Returns at once."""
        self._new_settings = settings, http, audit
        self.look()

    def look(self) -> None:
        """Check now: pod interfaces or kernel rules may have changed. Returns at once."""
        self._urgent.set()
        self._dirty.set()

    async def run(self) -> None:
        """Loop forever."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._wait()
            self._began = clock()
            await self.step()
            self._ended = clock()
            self.took, self._began = self._ended - self._began, None

    async def _wait(self) -> None:
        """Wait for a change, or until the next check of interfaces and kernel, or the next retry, is due.

        A burst of changes makes two revisions: one for the first change, which is not delayed, and one for the rest.
        Changes elsewhere wait until rounds have taken at most a ninth of the time, or as long as they may, unless
        something urgent comes.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._retry or self._check_every):
                await self._dirty.wait()
        ease = self._ended + min(EASE * self.took, LONGEST_EASE) - asyncio.get_running_loop().time()
        if self._dirty.is_set() and ease > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(ease):
                    await self._urgent.wait()
        self._urgent.clear()
        self._dirty.clear()

    def _is_elsewhere(self, change: Change) -> bool:
        """Whether it concerns pods of other nodes only."""
        match change:
            case Upsert(Pod(node=node)):
                return node != self._node
            case Upsert(resource):
                return isinstance(resource, ELSEWHERE)
            case Delete(key) if self.current is not None:
                local = (key.namespace, key.name) in self.current.view.names.ids
                return key.kind in _KINDS_ELSEWHERE and not local
            case _:
                return False

    async def step(self) -> None:
        """One round: at its end all changes received so far are enforced, or `kernel.error` is the reason why not."""
        changes, self._inbox, health = self._inbox, [], self._health
        received_at, self._received_at = self._received_at, None
        self._unenforced_since = received_at if self._unenforced_since is None else self._unenforced_since
        self._cluster_state.apply(changes)
        reconfigured = self._reconfigure()
        if not self._cluster_state.synced:
            return
        interfaces = await asyncio.to_thread(self._look)
        current = self.current
        if (
            current is None
            or changes
            or reconfigured
            or interfaces != current.interfaces
            or health is not current.source
        ):
            current = await self._draw(current, interfaces, health)
        if self.kernel.revision != current.revision:
            await self._publish(current)
        else:
            self._unenforced_since = None  # the changes do not concern this node
            await self._check(current)
        await self._count()

    def _reconfigure(self) -> bool:
        """Take over the settings of `configure`: between rounds, since a round reads them in a thread."""
        if self._new_settings is None:
            return False
        self._settings, self._http, audit = self._new_settings
        self._new_settings = None
        self._cluster_state.audit_all(audit)
        return True

    async def _draw(self, before: Published | None, interfaces: PodInterfaces, health: SourceHealth) -> Published:
        view, policies, snapshots = await asyncio.to_thread(self._compute, interfaces)
        for problem in (*view.problems, *view.secret_problems):
            if before is None or problem not in (*before.view.problems, *before.view.secret_problems):
                log.warning("%s", problem)
        secondary = secondary_interfaces(view.endpoints, interfaces)
        for one in secondary:
            if before is None or one not in before.secondary:
                log.warning("%s", one)
        moved = before is None or not snapshots.equals(before.snapshots)
        revision = self.revision + moved
        self.current = Published(revision, view, policies, snapshots.at(revision), interfaces, health, secondary)
        self._on_published(self.current)
        return self.current

    def _compute(self, interfaces: PodInterfaces) -> tuple[NodeView, dict[int, EndpointPolicy], DesiredState]:
        view = self._cluster_state.view(
            self._node, local_addresses=interfaces.local_addresses, assignments=interfaces.assignments
        )
        policies = self._compiler.compile(view.rules, view.endpoints, view.identities)
        snapshots = render(
            view,
            policies,
            interfaces,
            settings=self._settings,
            resolve_services=self._backend.steers_before_dnat,
            http=self._http,
            audit=self._cluster_state.audits_all,
            known=self._tables,
        )
        return view, policies, snapshots

    async def _publish(self, current: Published) -> None:
        try:
            if self._sent != current.revision:
                await self._link.publish(current.snapshots.workers)
                self._sent = current.revision
            if not await self._link.wait_applied(current.revision, self._patience):
                log.warning(
                    "revision %d: not applied by every worker within %g s; a worker without it serves no traffic",
                    current.revision,
                    self._patience,
                )
            self._link.require()
            installed = await asyncio.to_thread(self._apply, current)
        except (KernelError, LinkError) as error:
            self._failed(error)
            return
        self.kernel = replace(self.kernel, revision=current.revision, installed=installed, error="")
        self._retry = 0.0
        self._on_enforced(current.snapshots.kernel, False)
        if self._unenforced_since is not None:
            self._on_delay(asyncio.get_running_loop().time() - self._unenforced_since)
            self._unenforced_since = None
        log.info("revision %d enforced: %d endpoints", current.revision, len(current.view.endpoints))

    def _apply(self, current: Published) -> Installed | None:
        self._backend.apply(current.snapshots.kernel)
        if not self._swept:
            self._sweep(current)
        installed = self._backend.read()
        self._digest = installed.digest if installed else ""
        return installed

    def _sweep(self, current: Published) -> None:
        """Remove rules that an agent with another backend left. Once, and only after our own rules are enforced."""
        for other in self._others():
            if other.read() is not None:
                other.remove()
                log.warning("removed the rules of an earlier run with the %s backend", other.name)
                self._backend.apply(current.snapshots.kernel)  # the removal also deleted the shared routes
        self._swept = True

    async def _check(self, current: Published) -> None:
        """Restore kernel rules that another program changed or removed."""
        try:
            found = await asyncio.to_thread(self._backend.read)
            if found is None or not found.intact or found.digest != self._digest:
                self.kernel = replace(self.kernel, installed=found, reasserted=self.kernel.reasserted + 1)
                log.warning(
                    "kernel rules were changed by another program: restored (%d times so far)", self.kernel.reasserted
                )
                found = await asyncio.to_thread(self._apply, current)
                self._on_enforced(current.snapshots.kernel, True)
        except KernelError as error:
            self._failed(error)
            return
        self.kernel = replace(self.kernel, installed=found, error="")
        self._retry = 0.0

    async def _count(self) -> None:
        """Report the number of suppressed kernel events: rarely, so that changes are not delayed. A failed read does
        not matter: the counts are totals."""
        now = asyncio.get_running_loop().time()
        if now < self._counted + COUNT:
            return
        self._counted = now
        with suppress(KernelError):
            self._on_suppressed(await asyncio.to_thread(self._backend.suppressed))

    def _failed(self, error: Exception) -> None:
        self._retry = min(max(self._retry * 2, FIRST_RETRY), LAST_RETRY)
        if str(error) != self.kernel.error:
            log.error("cannot update the kernel rules, revision %d stays in force: %s", self.kernel.revision, error)
        self.kernel = replace(self.kernel, error=str(error))
