"""Addresses, routes and configurations of the cluster that `make cluster` makes."""

from __future__ import annotations

import ipaddress
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from deploy.cluster import cni, containerd, control_plane, dns, images, kube_proxy, kubelet, network
from deploy.cluster.plan import DNS_ADDRESS, MAX_NODES, POD_CIDRS, SERVICE_CIDRS, Cluster
from l7proxy.errors import ConfigError

CLUSTER = Cluster("kube")
NODE = CLUSTER.nodes[0]


def test_no_address_and_no_prefix_is_used_twice() -> None:
    machines = Cluster("kube", node_count=MAX_NODES).machines
    addresses = [address for machine in machines for address in machine.addresses]
    assert len(set(addresses)) == len(addresses)
    prefixes = [ipaddress.ip_network(cidr) for machine in machines for cidr in machine.pod_cidrs]
    prefixes += [ipaddress.ip_network(cidr) for cidr in SERVICE_CIDRS]
    for first, second in itertools.combinations(prefixes, 2):
        assert first.version != second.version or not first.overlaps(second)


def test_every_pod_prefix_is_in_the_one_that_kube_proxy_is_told() -> None:
    for node in Cluster("kube", node_count=MAX_NODES).nodes:
        for cidr, whole in zip(node.pod_cidrs, POD_CIDRS, strict=True):
            network_of_node = ipaddress.ip_network(cidr)
            assert network_of_node.subnet_of(ipaddress.ip_network(whole))  # type: ignore[arg-type]


def test_names_of_two_clusters_differ() -> None:
    def names(cluster: Cluster) -> set[str]:
        return {name for machine in cluster.machines for name in (machine.netns, machine.cgroup, str(machine.data))}

    assert not names(Cluster("one")) & names(Cluster("two"))


@pytest.mark.parametrize("name", ["", "Kube", "a.b", "../x", "1a", "a" * 13, "a b", "a/b"])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        Cluster(name)


@pytest.mark.parametrize("count", [0, MAX_NODES + 1])
def test_a_number_of_nodes_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="--nodes"):
        Cluster("kube", node_count=count)


def test_a_node_has_routes_to_the_pods_of_the_others_only() -> None:
    assert network.routes(NODE, CLUSTER) == [
        "route replace 10.244.2.0/24 via 172.30.0.12",
        "route replace fd00:10:244:2::/64 via fd00:172:30::12",
    ]
    assert len(network.routes(CLUSTER.control, CLUSTER)) == 4


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_the_conflist_gives_addresses_of_the_nodes_own_prefixes(kind: Any) -> None:
    document = json.loads(cni.conflist(Cluster("kube", cni=kind), NODE))
    main, portmap = document["plugins"]
    assert main["type"] == kind
    assert [[one["subnet"] for one in each] for each in main["ipam"]["ranges"]] == [[cidr] for cidr in NODE.pod_cidrs]
    assert main["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    assert portmap["capabilities"] == {"portMappings": True}


@pytest.mark.parametrize("cgroup_version", [1, 2])
def test_the_kubelet_lets_nobody_in_without_a_name_and_asks_for_cgroup_1_only_there(cgroup_version: int) -> None:
    settings = kubelet.configuration(NODE, Path("/pki"), cgroup_version=cgroup_version)
    assert settings["authentication"]["anonymous"] == {"enabled": False}
    assert settings["authorization"] == {"mode": "Webhook"}
    assert settings["clusterDNS"] == [DNS_ADDRESS]
    assert settings["containerRuntimeEndpoint"] == f"unix://{containerd.SOCKET}"
    assert ("failCgroupV1" in settings) is (cgroup_version == 1)


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_kube_proxy_leaves_the_hosts_conntrack_alone(mode: Any) -> None:
    settings = kube_proxy.configuration(Cluster("kube", proxy=mode), NODE)
    assert settings["mode"] == mode
    assert settings["clusterCIDR"] == "10.244.0.0/16,fd00:10:244::/48"
    assert settings["conntrack"] == {
        "maxPerCore": 0,
        "min": 0,
        "tcpEstablishedTimeout": "0s",
        "tcpCloseWaitTimeout": "0s",
    }


def test_containerd_takes_the_pause_image_that_is_imported() -> None:
    assert f'sandbox_image = "{images.PAUSE}"' in containerd.configuration()


def test_the_control_plane_names_no_file_outside_the_cluster() -> None:
    for program, arguments in control_plane.PROGRAMS.items():
        for path in re.findall(r"=(/[^,]*)", "\n".join(arguments(CLUSTER))):
            assert Path(path).is_relative_to(CLUSTER.data), (program, path)


def test_the_dns_service_selects_the_pods_of_coredns() -> None:
    objects = {document["kind"]: document for document in dns.manifests()}
    template = objects["Deployment"]["spec"]["template"]
    assert objects["Service"]["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert objects["Service"]["spec"]["clusterIP"] == DNS_ADDRESS
    assert template["spec"]["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
