"""The parts of an agent as `agent/run` connects them, with the fake kernel; nothing runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from l7proxy.agent import queries
from l7proxy.agent.configuration import Configuration
from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.agent.dataplane.reconciler import Published, Reconciler
from l7proxy.agent.dataplane.revocation import Revocation
from l7proxy.agent.flow_recorder import Recorder
from l7proxy.flows.sinks.feed import Feed
from l7proxy.link.server import LinkServer
from l7proxy.setting_definitions import Settings
from l7proxy.settings import derived
from l7proxy.sources.files.source import FileSource
from tproxy_rules.fake import FakeBackend


def idle_parts(
    settings: Settings,
    recorder: Recorder,
    *,
    feeds: Sequence[Feed] = (),
    on_published: Callable[[Published], None] = lambda published: None,
    on_delay: Callable[[float], None] = lambda seconds: None,
) -> queries.Parts:
    """Of the agent of node `settings.node`, whose source is the directory `settings.source`."""
    directory, state = Path(settings.source), derived.empty_cluster(settings)
    link = LinkServer(directory / "link.sock", on_flows=lambda _: None)
    reconciler = Reconciler(
        cluster_state=state,
        link=link,
        backend=FakeBackend(),
        node=settings.node,
        look=PodInterfaces,
        settings=derived.kernel(settings),
        on_published=on_published,
        on_delay=on_delay,
    )
    return queries.Parts(
        configuration=Configuration(settings),
        source=FileSource(directory),
        backend="fake",
        cluster_state=state,
        reconciler=reconciler,
        revocation=Revocation(),
        link=link,
        recorder=recorder,
        ring=recorder.ring,
        feeds=feeds,
    )
