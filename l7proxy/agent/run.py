"""Runs the agent: the composition root, which connects all of its components and owns the only TaskGroup.

An error at start (a setting, a privilege, a tool, a kernel feature) is one line on standard error and exit code 2.
Stopping leaves the kernel rules unchanged: L4 policy stays enforced, ports with L7 rules refuse (law 8).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from l7proxy.agent import health, heap, queries
from l7proxy.agent.api import AgentApi
from l7proxy.agent.configuration import Configuration
from l7proxy.agent.dataplane import pod_interfaces
from l7proxy.agent.dataplane.reconciler import Published, Reconciler
from l7proxy.agent.dataplane.revocation import Revocation
from l7proxy.agent.exporters import Exporters
from l7proxy.agent.flow_recorder import Recorder
from l7proxy.agent.service_manager import ServiceManager
from l7proxy.agent.shadow import ShadowPolicies
from l7proxy.errors import ConfigError
from l7proxy.flows.ring import Ring
from l7proxy.flows.sinks import registry
from l7proxy.flows.sinks.feed import Feed
from l7proxy.flows.sinks.sink import Sink
from l7proxy.link.server import LinkServer
from l7proxy.process import exit_code, make_run_dir
from l7proxy.setting_definitions import KUBERNETES, Settings
from l7proxy.settings import derived
from l7proxy.settings.address import host_and_port
from l7proxy.settings.origin import Origin
from l7proxy.sources.files.notify import ChangeNotifier
from l7proxy.sources.files.source import FileSource
from l7proxy.sources.source import Source
from tproxy_rules import detect
from tproxy_rules.backend import Backend, KernelError
from tproxy_rules.desired import Desired
from tproxy_rules.nflog import NflogReader
from tproxy_rules.sysctl import Sysctls

if TYPE_CHECKING:
    from l7proxy.agent.cluster_status.service import ClusterStatus
    from l7proxy.agent.hubble import Hubble
    from l7proxy.agent.metrics import Scraper

log = logging.getLogger(__name__)

ALARM_EASE: Final = (1.0, 1.0)
"""(shortest, longest) pause in seconds between repairs, for rules that another program removes repeatedly."""
INTERFACES_EASE: Final = (0.02, 0.5)
"""The same for scans of pod interfaces: pods start by the hundred, with several notifications each, and a starting pod
waits for the scan."""
EVENT_PAUSE: Final = 0.01
"""Seconds between two reads of kernel events, so that many connections do not wake the agent for each. A worker's
records do not wait for it, nor do the events before them."""
RESULTS_CHECK: Final = 5.0
"""Seconds after which the watch of CNI results is renewed: their directory may have been recreated."""
SCRAPE_PATIENCE: Final = 10.0
"""Seconds for a scrape, Prometheus' default timeout."""
GC_THRESHOLDS: Final = (50_000, 20, 100)
"""Thousands of pods are many long-lived objects: frequent full collections would delay policy updates."""


def run_agent(settings: Settings, origin: Origin | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code. `origin`: where changed settings are read."""
    heap.give_back()
    return exit_code(lambda: asyncio.run(_agent(Configuration(settings, origin))), ConfigError, KernelError)


async def _agent(configuration: Configuration) -> None:
    gc.set_threshold(*GC_THRESHOLDS)
    async with _opened_source(configuration.settings) as source:
        await _serve(configuration, source)


async def _serve(configuration: Configuration, source: Source) -> None:
    settings = configuration.settings
    make_run_dir(settings.run_dir)
    backend = await asyncio.to_thread(detect.choose, settings.backend, Sysctls(settings.sysctls_record))
    ring = Ring(settings.flow_ring, node_name=settings.node)
    shadow = ShadowPolicies(settings) if settings.shadow_policies else None
    recorded = Ring(settings.flow_ring, node_name=settings.node) if shadow else ring
    recorder = Recorder(recorded, node=settings.node, cluster=settings.cluster)
    link = LinkServer(settings.link_socket, on_flows=recorder.ingest)
    cluster_state = derived.empty_cluster(settings)
    watcher = pod_interfaces.InterfaceWatcher(settings.cni_results, settings.cni_ignored_networks)
    revocation = Revocation()
    manager = ServiceManager()

    def configured(_: frozenset[str]) -> None:
        now = configuration.settings
        reconciler.configure(derived.kernel(now), derived.http_options(now), audit=now.audit)

    def published(snapshot: Published) -> None:
        recorder.published(snapshot)
        if hubble:
            hubble.nodes(cluster_state.nodes())

    def enforced(snapshot: Desired, restored: bool) -> None:
        revocation.in_force(snapshot, doubtful=restored)
        manager.ready()

    hubble, scraper = _hubble(settings, ring), _scraper(settings, recorder)
    reconciler = Reconciler(
        cluster_state=cluster_state,
        link=link,
        backend=backend,
        node=settings.node,
        look=watcher.look,
        settings=derived.kernel(settings),
        http=derived.http_options(settings),
        on_published=published,
        on_enforced=enforced,
        on_suppressed=recorder.suppressed,
        on_delay=scraper.enforced if scraper else lambda seconds: None,
        others=partial(_others, backend.name),
    )
    sinks: dict[str, Sink] = registry.make(settings)
    if scraper and scraper.flows:
        sinks["metrics"] = scraper.flows
        recorder.on_suppressed = scraper.flows.add
    feeds = [Feed(name, sink, ring) for name, sink in sinks.items()]
    always = tuple(feeds)
    exporters = Exporters(Path(settings.flow_logs_config), ring, feeds) if settings.flow_logs_config else None
    cluster_status = _cluster_status(configuration, reconciler, link)
    parts = queries.Parts(
        configuration=configuration,
        source=source,
        backend=backend.name,
        cluster_state=cluster_state,
        reconciler=reconciler,
        revocation=revocation,
        link=link,
        recorder=recorder,
        ring=ring,
        feeds=feeds,
        exporters=exporters,
        cluster_status=cluster_status,
        shadow=shadow,
    )
    api = AgentApi(settings.agent_socket, ring, queries.answers(parts))
    stop = _stop_signal()
    async with (
        api.serving(),
        hubble.serving() if hubble else nullcontext(),
        exporters.running() if exporters else nullcontext(),
        _feeding(always),  # until workers have sent their last records
        shadow.between(recorded, ring) if shadow else nullcontext(),
        link.serving(),
        _probes(settings, reconciler, link),
        _metrics(settings, scraper, parts) if scraper else nullcontext(),
        _listening(settings.nflog_group, recorder),  # last: its "not permitted" may only mean another running agent
        asyncio.TaskGroup() as tasks,
    ):
        running = [
            tasks.create_task(_follow(source, reconciler), name="source"),
            tasks.create_task(reconciler.run(), name="reconcile"),
            tasks.create_task(_watch_alarm(backend, reconciler), name="alarm"),
            tasks.create_task(_watch_links(watcher, reconciler), name="links"),
            tasks.create_task(_watch_results(settings.cni_results, reconciler), name="CNI results"),
            tasks.create_task(revocation.run(), name="revocation"),
            tasks.create_task(configuration.run(configured), name="settings"),
            *([tasks.create_task(cluster_status.run(), name="status in the cluster")] if cluster_status else []),
        ]
        log.info("node %s: backend %s, source %s", settings.node, backend.name, settings.source)
        await stop.wait()
        manager.stopping()
        log.info("stopping; the kernel's rules stay in force")
        for task in running:
            task.cancel()


@asynccontextmanager
async def _feeding(feeds: Iterable[Feed]) -> AsyncIterator[None]:
    """Write events to the sinks; at the end of the block, what has come by then, too."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(feed.run(), name=feed.name) for feed in feeds]
        try:
            yield
        finally:
            for task in running:
                task.cancel()


async def _watch_alarm(backend: Backend, reconciler: Reconciler) -> None:
    """Restore removed kernel rules at once: until then, traffic that they refuse passes."""
    alarm = backend.alarm()
    if alarm is None:
        return
    with closing(alarm):
        await _watch(alarm, reconciler, Pace(*ALARM_EASE))


async def _watch_links(watcher: pod_interfaces.InterfaceWatcher, reconciler: Reconciler) -> None:
    """Bind a new pod interface to its addresses before the pod runs, and close it while no Pod object has them."""
    if watcher.fileno() >= 0:
        await _watch(watcher, reconciler, Pace(*INTERFACES_EASE, lambda: reconciler.took))


async def _watch_results(results: Path, reconciler: Reconciler) -> None:
    """Watch CNI results too: the runtime writes a pod's addresses only after its link is up."""
    pace = Pace(*INTERFACES_EASE, lambda: reconciler.took)
    with ChangeNotifier() as notifier:
        while True:
            # Its nearest existing parent, too: the directory may not exist yet, or be removed.
            notifier.watch(next(above for above in results.parents if above.is_dir()))
            notifier.watch(results)
            if await notifier.wait(RESULTS_CHECK):
                reconciler.look()
                await pace.rest()


class Bell(Protocol):
    """A source of notifications: wait until the descriptor is readable, then call `rang`."""

    def fileno(self) -> int: ...
    def rang(self) -> bool: ...


class Pace:
    """Pauses from the start of one round to the next: twice as long as the last round `took`, within `least` and `most`
    seconds. So one change is handled at once, and many take at most half of the time."""

    def __init__(self, least: float, most: float, took: Callable[[], float] = lambda: 0.0) -> None:
        self._least, self._most, self._took = least, most, took

    @property
    def pause(self) -> float:
        return min(max(self._least, 2 * self._took()), self._most)

    async def rest(self) -> None:
        await asyncio.sleep(self.pause)


async def _watch(bell: Bell, reconciler: Reconciler, pace: Pace) -> None:
    """Loop forever: trigger a scan per notification, but no more often than `pace` allows."""
    while True:
        await _readable(bell.fileno())
        if bell.rang():
            reconciler.look()
            await pace.rest()


async def _readable(descriptor: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


@asynccontextmanager
async def _listening(group: int, recorder: Recorder) -> AsyncIterator[None]:
    """Pass the kernel's verdict events (NFLOG) to the recorder: the first at once, others after EVENT_PAUSE at most."""
    loop = asyncio.get_running_loop()
    with NflogReader(group) as reader:
        pause: asyncio.TimerHandle | None = None

        def read() -> None:
            nonlocal pause
            loop.remove_reader(reader.fileno())
            pause = loop.call_later(EVENT_PAUSE, loop.add_reader, reader.fileno(), read)
            recorder.read()

        recorder.listen(reader)
        loop.add_reader(reader.fileno(), read)
        try:
            yield
        finally:
            if pause is not None:
                pause.cancel()
            loop.remove_reader(reader.fileno())
            recorder.listen(None)


def _probes(settings: Settings, reconciler: Reconciler, link: LinkServer) -> AbstractAsyncContextManager[object]:
    """The listener for probes, if one is wanted."""
    if not settings.health_address:
        return nullcontext()
    checks: dict[str, health.Check] = {
        "/livez": lambda: health.not_alive(reconciler),
        "/readyz": lambda: health.not_ready(reconciler, link.workers()),
    }
    return health.HealthServer(*host_and_port(settings.health_address), checks).serving()


def _metrics(settings: Settings, scraper: Scraper, parts: queries.Parts) -> AbstractAsyncContextManager[object]:
    """The listener for Prometheus."""
    address = host_and_port(settings.metrics_address)
    pages = {"/metrics": partial(scraper.page, parts)}
    patience = SCRAPE_PATIENCE
    return health.HealthServer(*address, {}, pages=pages, setting="metrics-address", patience=patience).serving()


def _cluster_status(configuration: Configuration, reconciler: Reconciler, link: LinkServer) -> ClusterStatus | None:
    settings = configuration.settings
    if settings.source != KUBERNETES or not settings.policy_status:
        return None
    # Here, since they import the Kubernetes client.
    from l7proxy.agent.cluster_status.service import ClusterStatus, Observed
    from l7proxy.sources.kubernetes.connection import Connection
    from l7proxy.sources.kubernetes.credentials import Access

    def look() -> Observed:
        workers = tuple(worker.revision for worker in link.workers())
        return Observed(reconciler.current, reconciler.kernel, workers, configuration.settings.audit)

    def connect() -> Connection:
        return Connection(Access(settings.kubeconfig, settings.kube_context))

    return ClusterStatus(node=settings.node, namespace=settings.namespace, look=look, connect=connect)


def _hubble(settings: Settings, ring: Ring) -> Hubble | None:
    if not settings.hubble_socket_path and not settings.hubble_listen_address:
        return None
    try:
        from l7proxy.agent.hubble import Hubble  # here: 10 MiB, and optional
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"hubble-socket-path, hubble-listen-address: {error.name} is not installed: pip install 'l7proxy[hubble]'"
        ) from error
    return Hubble(settings, ring)


def _scraper(settings: Settings, recorder: Recorder) -> Scraper | None:
    if not settings.metrics_address:
        return None
    from l7proxy.agent.metrics import Scraper  # here: most agents need no Prometheus client

    return Scraper(settings, recorder)


def _others(ours: str) -> list[Backend]:
    """The backends that an earlier run may have used, without ours. An unavailable backend has left no rules."""
    found = []
    for name in detect.NAMES:
        if name not in ("auto", ours):
            with suppress(KernelError):
                found.append(detect.choose(name))
    return found


async def _follow(source: Source, reconciler: Reconciler) -> None:
    """Submit every batch of the source to the reconciler; log each problem once."""
    reported: set[str] = set()
    async for changes in source.watch():
        health = source.health()
        now = {str(problem) for problem in health.problems}
        for text in sorted(now - reported):
            log.warning("%s", text)
        reported = now
        reconciler.submit(changes, health)


@asynccontextmanager
async def _opened_source(settings: Settings) -> AsyncIterator[Source]:
    if settings.source != KUBERNETES:
        path = Path(settings.source)
        if not path.exists():
            raise ConfigError(f"source: {path}: no such file or directory")
        yield FileSource(path, derived.policy_options(settings))
        return
    # The client of the API takes memory and time: it is imported only where it is used.
    from l7proxy.sources.kubernetes.connection import Connection
    from l7proxy.sources.kubernetes.credentials import Access
    from l7proxy.sources.kubernetes.source import KubernetesSource

    async with Connection(Access(settings.kubeconfig, settings.kube_context)) as api:
        yield KubernetesSource(
            api,
            derived.policy_options(settings),
            secrets_namespace=settings.secrets_namespace,
            state_dir=settings.state_dir,
        )


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
