"""What the cluster of `make cluster` can do. What l7proxy does on it is in the other modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.cluster import cluster as clusters
from deploy.cluster import images
from deploy.cluster.machine_init import KERNEL_TUNABLES
from deploy.cluster.plan import DNS_ADDRESS
from l7proxy.errors import ConfigError
from tests.kube.handle import CommandFailedError, Handle, eventually

PORT = 8080
NODE_PORT = 30080
WORLD = "cluster-world"


def pod(name: str, node: str, namespace: str, command: list[str], **container: Any) -> dict[str, Any]:
    spec = {
        "nodeName": node,
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": images.NETSHOOT, "command": command, **container}],
    }
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def server(name: str, node: str, namespace: str) -> dict[str, Any]:
    ready = {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1}
    serve = ["python3", "-m", "http.server", "--bind", "::", str(PORT)]
    return pod(name, node, namespace, serve, readinessProbe=ready)


def service(name: str, namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": "NodePort",
            "ipFamilyPolicy": "RequireDualStack",
            "selector": {"app": name},
            "ports": [{"port": 80, "targetPort": PORT, "nodePort": NODE_PORT}],
        },
    }


@pytest.fixture(scope="module")
def world(cluster: Handle) -> Iterator[str]:
    """A namespace with a server on node 1 behind a Service, and a client on each node."""
    first, second = (node.name for node in cluster.nodes)
    sleep = ["sleep", "infinity"]
    cluster.kubectl("create", "namespace", WORLD)
    cluster.apply(
        server("web", first, WORLD),
        service("web", WORLD),
        pod("near", first, WORLD, sleep),
        pod("far", second, WORLD, sleep),
    )
    cluster.kubectl("wait", "-n", WORLD, "--for=condition=Ready", "pod", "--all", "--timeout=60s")
    yield WORLD
    cluster.kubectl("delete", "namespace", WORLD)


def status(cluster: Handle, namespace: str, client: str, url: str) -> str:
    curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5", url]
    try:
        return cluster.exec(client, *curl, namespace=namespace)
    except CommandFailedError as error:
        return f"curl's code {error.code}"


def test_all_programs_run(cluster: Handle) -> None:
    for where, programs in clusters.components(cluster.cluster).items():
        assert all(programs.values()), (where, programs)


def urls(cluster: Handle, world: str) -> list[str]:
    """All ways to the server: by pod, Service, name and node."""
    pods = [each["ip"] for each in cluster.get("pod", "web", "-n", world)["status"]["podIPs"]]
    services = cluster.get("service", "web", "-n", world)["spec"]["clusterIPs"]
    assert len(pods) == len(services) == 2
    return [
        *(f"http://{bracketed(address)}:{PORT}/" for address in pods),
        *(f"http://{bracketed(address)}/" for address in services),
        f"http://web.{world}.svc.cluster.local/",
        "http://web/",
        *(f"http://{node.addresses[0]}:{NODE_PORT}/" for node in cluster.nodes),
    ]


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize("client", ["near", "far"])
def test_a_pod_reaches_a_server_by_each_of_its_addresses(cluster: Handle, world: str, client: str) -> None:
    expected = dict.fromkeys(urls(cluster, world), "200")
    eventually(
        lambda: {url: status(cluster, world, client, url) for url in expected} == expected,
        f"200 from {client} for {', '.join(expected)}",
    )


def test_the_source_address_is_the_pods_own(cluster: Handle, world: str) -> None:
    services = [
        f"http://{bracketed(each)}/" for each in cluster.get("service", "web", "-n", world)["spec"]["clusterIPs"]
    ]
    eventually(lambda: {status(cluster, world, "far", url) for url in services} == {"200"}, "the Service answers")
    log = cluster.kubectl("logs", "-n", world, "web")
    for address in cluster.get("pod", "far", "-n", world)["status"]["podIPs"]:
        assert address["ip"] in log


def test_dns_answers_for_services_and_says_so_when_there_is_none(cluster: Handle, world: str) -> None:
    def dig(name: str) -> str:
        return cluster.exec("near", "dig", f"@{DNS_ADDRESS}", "+short", "+tries=1", name, namespace=world).strip()

    expected = cluster.get("service", "web", "-n", world)["spec"]["clusterIP"]
    eventually(lambda: dig(f"web.{world}.svc.cluster.local") == expected, "DNS answers")
    assert dig(f"none.{world}.svc.cluster.local") == ""


def test_exit_codes_of_commands_in_pods_come_back(cluster: Handle, world: str) -> None:
    with pytest.raises(CommandFailedError) as failure:
        cluster.exec("near", "sh", "-c", "exit 42", namespace=world)
    assert failure.value.code == 42


def test_a_node_may_not_change_the_hosts_kernel(cluster: Handle) -> None:
    def write(key: str) -> str:
        return f"echo 1 >/proc/sys/{key} && echo written || echo refused"

    node = cluster.nodes[0]
    before = Path("/proc/sys/kernel/panic").read_text()
    assert cluster.in_node(node, "sh", "-c", write("kernel/threads-max") + " 2>/dev/null").strip() == "refused"
    assert cluster.in_node(node, "sh", "-c", write("net/ipv4/conf/all/route_localnet")).strip() == "written"
    for key, wanted in KERNEL_TUNABLES.items():
        if Path("/proc/sys", key).exists():
            assert cluster.in_node(node, "cat", f"/proc/sys/{key}").strip() == str(wanted)
    assert Path("/proc/sys/kernel/panic").read_text() == before


def test_what_a_node_writes_is_its_own(cluster: Handle) -> None:
    first, second = cluster.nodes
    for path in ("/etc/of-a-node", "/run/of-a-node", "/var/log/of-a-node", "/opt/of-a-node"):
        cluster.in_node(first, "touch", path)
        assert not Path(path).exists()
        assert cluster.in_node(second, "sh", "-c", f"test -e {path} && echo there || echo none").strip() == "none"


@pytest.mark.parametrize(
    ("where", "program"),
    [
        ("control", "gateway"),
        ("control", "etcd"),
        ("control", "kube-apiserver"),
        ("control", "kube-controller-manager"),
        ("control", "kube-scheduler"),
        ("node-2", "containerd"),
        ("node-2", "kubelet"),
        ("node-2", "kube-proxy"),
    ],
)
def test_pods_outlive_a_program_that_is_killed_and_started_again(
    cluster: Handle, world: str, where: str, program: str
) -> None:
    cluster.kill(where, program)
    eventually(lambda: not clusters.components(cluster.cluster)[where][program], f"{program} has ended")
    cluster.start(where, program)
    eventually(lambda: status(cluster, world, "far", "http://web/") == "200", "a pod of before answers")
    restarts = [
        pod["status"]["containerStatuses"][0]["restartCount"] for pod in cluster.get("pod", "-n", world)["items"]
    ]
    assert restarts == [0, 0, 0]
    assert clusters.components(cluster.cluster)[where][program]


def test_a_program_that_is_not_there_is_named(cluster: Handle) -> None:
    with pytest.raises(ConfigError, match="no program etcd on node-1"):
        cluster.kill("node-1", "etcd")
    with pytest.raises(ConfigError, match="no machine node-9"):
        cluster.start("node-9", "kubelet")


def test_an_archive_that_is_none_is_named(cluster: Handle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.tar: cannot be read"):
        cluster.load(tmp_path / "none.tar")
    other = tmp_path / "other.tar"
    other.write_text("no archive")
    with pytest.raises(ConfigError, match=r"other\.tar: cannot be imported on node-"):
        cluster.load(other)


def test_a_second_up_finds_it_running_and_another_kind_is_refused(cluster: Handle) -> None:
    assert clusters.up(cluster.cluster) is False
    with pytest.raises(ConfigError, match="is up with CNI="):
        clusters.up(replace(cluster.cluster, node_count=1))


def test_no_process_of_the_host_is_seen_in_a_node(cluster: Handle) -> None:
    seen = cluster.in_node(cluster.nodes[0], "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "pytest" not in seen
    assert "kubelet" in seen


def test_the_kubeconfig_is_for_root_only(cluster: Handle) -> None:
    assert cluster.cluster.kubeconfig.stat().st_mode & 0o777 == 0o600
    assert not cluster.cluster.data.stat().st_mode & 0o077
