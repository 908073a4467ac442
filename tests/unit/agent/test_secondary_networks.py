"""Interfaces of pods on further networks: no policy applies to them, so they are reported, and only they."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest

from l7proxy.agent import report
from l7proxy.agent.dataplane.pod_interfaces import HostNetwork, Link, PodInterfaces, connect, parse_result
from l7proxy.agent.dataplane.reconciler import Reconciler
from l7proxy.agent.dataplane.secondary_networks import SecondaryInterface, secondary_interfaces
from l7proxy.cluster.state import ClusterState
from l7proxy.link.server import WorkerState
from l7proxy.model.endpoint import Endpoint
from l7proxy.model.ids import EndpointId, IdentityId
from l7proxy.model.labels import LabelSet
from l7proxy.model.resources import Node, Pod, Upsert
from l7proxy.sources.source import SYNCED, SourceHealth
from tproxy_rules.desired import Settings
from tproxy_rules.fake import FakeBackend

MAC = "0a:58:0a:00:01:05"
HOST = HostNetwork(
    {
        "cni0": Link("cni0", "02:00:00:00:00:01", "bridge"),
        "br1": Link("br1", "02:00:00:00:00:09", "bridge"),
        "veth1": Link("veth1", "02:00:00:00:00:02", "veth", "cni0"),
        "veth2": Link("veth2", "02:00:00:00:00:03", "veth", "br1"),
        "veth3": Link("veth3", "02:00:00:00:00:04", "veth", "cni0"),
    }
)
WEB = Endpoint(EndpointId(7), "shop", "web", IdentityId(300), LabelSet.of([]), ("10.0.1.5",))


def cached(
    inside: str, network: str, *addresses: str, hosts: tuple[str, ...] = (), container: str = "c"
) -> Mapping[str, Any]:
    """A file of libcni's cache, as containerd and Multus write it."""
    interfaces = [*({"name": host} for host in hosts), {"name": inside, "mac": MAC, "sandbox": "/run/netns/x"}]
    ips = [{"address": f"{address}/24", "interface": len(hosts)} for address in addresses]
    return {
        "kind": "cniCacheV1",
        "containerId": container,
        "ifName": inside,
        "networkName": network,
        "result": {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips},
    }


PRIMARY = cached("eth0", "pods", "10.0.1.5", hosts=("cni0", "veth1"))
AGAIN = cached("eth0", "multus-cni-network", "10.0.1.5", hosts=("cni0", "veth1"))
LOOPBACK = cached("lo", "cni-loopback", "127.0.0.1")
BRIDGED = cached("net1", "storage", "192.168.7.5", hosts=("br1", "veth2"))
MACVLAN = cached("net2", "fast", "172.16.0.5")
BARE = cached("net3", "layer-2")


def seen(*results: Mapping[str, Any]) -> PodInterfaces:
    return connect((one for document in results for one in parse_result(document)), HOST)


def test_further_networks_are_named_with_or_without_an_end_on_the_node() -> None:
    found = secondary_interfaces([WEB], seen(PRIMARY, AGAIN, LOOPBACK, BRIDGED, MACVLAN, BARE))
    assert found == (
        SecondaryInterface("shop/web", "net1", "storage", "veth2", ("192.168.7.5",)),
        SecondaryInterface("shop/web", "net2", "fast", "", ("172.16.0.5",)),
        SecondaryInterface("shop/web", "net3", "layer-2"),
    )
    assert [str(one) for one in found[1:]] == [
        "pod shop/web: interface net2 (172.16.0.5) of network fast: no policy applies to it",
        "pod shop/web: interface net3 (no address) of network layer-2: no policy applies to it",
    ]


def test_the_pod_network_alone_is_covered() -> None:
    assert secondary_interfaces([WEB], seen(PRIMARY, AGAIN, LOOPBACK)) == ()


def test_what_a_dead_container_left_is_not_reported() -> None:
    old = cached("net1", "fast", "172.16.0.9", container="gone")
    assert secondary_interfaces([WEB], seen(PRIMARY, old)) == ()


def test_interfaces_of_unknown_pods_are_closed_instead() -> None:
    other = cached("eth0", "pods", "10.0.1.9", hosts=("cni0", "veth3"), container="d")
    assert secondary_interfaces([WEB], seen(PRIMARY, other, cached("net1", "fast", "172.16.0.9", container="d"))) == ()


class NoWorkers:
    async def publish(self, snapshot: object) -> None: ...
    async def wait_applied(self, revision: int, timeout: float) -> bool:  # noqa: ASYNC109
        return True

    def require(self) -> None: ...
    def workers(self) -> list[WorkerState]:
        return []


async def test_it_is_logged_once_and_in_the_report(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    state, interfaces = ClusterState(), [seen(PRIMARY, MACVLAN)]
    agent = Reconciler(
        cluster_state=state,
        link=NoWorkers(),
        backend=FakeBackend(),
        node="n1",
        look=lambda: interfaces[0],
        settings=Settings(),
    )
    agent.submit([Upsert(Node("n1")), Upsert(Pod("shop", "web", "n1", ("10.0.1.5",))), *SYNCED], SourceHealth())
    await agent.step()
    agent.submit([Upsert(Pod("shop", "other", "n2", ("10.0.2.5",)))], SourceHealth())
    await agent.step()
    said = "pod shop/web: interface net2 (172.16.0.5) of network fast: no policy applies to it"
    assert [record.getMessage() for record in caplog.records].count(said) == 1
    assert agent.current is not None
    one = {"interface": "net2", "network": "fast", "host": "", "addresses": ["172.16.0.5"]}
    assert report.secondary(agent.current) == [{"pod": "shop/web"} | one]
    assert [each["secondary"] for each in report.endpoints(agent.current)] == [[one]]
    revision = agent.revision
    interfaces[0] = seen(PRIMARY)
    await agent.step()
    assert (report.secondary(agent.current), agent.revision) == ([], revision), "nothing else is enforced"
