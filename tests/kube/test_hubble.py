"""The stock `hubble` and Relay on a real cluster, installed by the chart: the flows of both nodes in one place.

The tests run in this order, on one release. The image is that of `make image`.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.cluster import hubble
from deploy.helm.generate import CHART
from tests.kube.handle import CommandFailedError, Handle, eventually
from tests.kube.test_helm import IMAGE, POLICY, RELEASE, SERVER, SYSTEM, pod
from tests.support.hubble_cli import HubbleCli, JsonFlow, flows_in, http, path, wrong
from tests.support.hubble_cli import pod as pod_of

RING: Final = 1023
"""Flows that a node keeps: few, so that a reader who stalls loses some soon."""
CUT: Final = (16, 18, 52, 55, 56)
"""How curl says that the server ended the connection without an answer: it depends on what arrived first."""
TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
VALUES: Final = ("image.tag=dev", f"settings.flow-ring={RING}", "hubble.enabled=true", "hubble.relay.enabled=true")
LOAD: Final = """
import http.client, json, sys, time
counts, slowest, end = {}, 0.0, time.monotonic() + float(sys.argv[2])
connection = http.client.HTTPConnection(sys.argv[1], timeout=10)
while time.monotonic() < end:
    for path in ("/api/load", "/admin/load"):
        began = time.monotonic()
        try:
            connection.request("GET", path)
            answer = connection.getresponse(); answer.read(); what = f"{path} {answer.status}"
        except OSError as error:
            what = f"{path} {type(error).__name__}"; connection.close()
        counts[what] = counts.get(what, 0) + 1
        slowest = max(slowest, time.monotonic() - began)
print(json.dumps({"counts": counts, "slowest": slowest}))
"""
SERVE_TWO_FAMILIES: Final = SERVER.replace(
    "request_queue_size = 512", "request_queue_size = 512; address_family = __import__('socket').AF_INET6"
)


@pytest.fixture(scope="module")
def pods(cluster: Handle) -> Iterator[None]:
    """A client and a server on each node, and a stranger."""
    sleep, serve = ["sleep", "infinity"], ["python3", "-c", SERVE_TWO_FAMILIES]
    first, second = (node.name for node in cluster.nodes)
    made = [
        pod("client-1", first, {"role": "client"}, sleep),
        pod("client-2", second, {"role": "client"}, sleep),
        pod("stranger", second, {"role": "other"}, sleep),
        pod("web", first, {"app": "web", "shop": "one"}, serve),
        pod("till", second, {"app": "web", "shop": "two"}, serve),
    ]
    services = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": {"shop": shop}, "ports": [{"port": 80, "targetPort": 8080}]},
        }
        for name, shop in (("web", "one"), ("till", "two"))
    ]
    cluster.apply(*made, *services, POLICY)
    names = [f"pod/{one['metadata']['name']}" for one in made]
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=120s", *names)
    yield
    cluster.kubectl("delete", "ciliumnetworkpolicy/web", "--ignore-not-found")
    cluster.kubectl("delete", "service/web", "service/till", *names, "--wait=true")


@pytest.fixture(scope="module")
def programs() -> Path:
    return hubble.recipe().kept()


@pytest.fixture(scope="module")
def release(cluster: Handle, programs: Path) -> Iterator[tuple[str, ...]]:
    """The arguments that it was installed with."""
    assert IMAGE.exists(), "make image"
    name, archive = hubble.relay_image()
    cluster.load(IMAGE)
    cluster.load(archive)
    repository, tag = name.rsplit(":", 1)
    relay = (f"hubble.relay.image.repository={repository}", f"hubble.relay.image.tag={tag}")
    given = [f"--set={','.join((*VALUES, *relay))}", "--wait", "--timeout=3m"]
    cluster.helm("install", RELEASE, str(CHART), "-n", SYSTEM, *given)
    yield tuple(given)
    cluster.helm("uninstall", RELEASE, "-n", SYSTEM)


@contextmanager
def forwarded(cluster: Handle, target: str, port: int) -> Iterator[str]:
    """HOST:PORT of this machine that `kubectl port-forward` leads to a port of the target."""
    command = [str(cluster.parts.kubectl), "port-forward", "-n", SYSTEM, target, f":{port}"]
    with subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            said = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:\d+", said)
            assert found, said
            yield found[0]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def relay(cluster: Handle, release: tuple[str, ...]) -> Iterator[str]:
    with forwarded(cluster, "svc/hubble-relay", 80) as address:
        yield address


@pytest.fixture(scope="module")
def cli(cluster: Handle, programs: Path, relay: str) -> HubbleCli:
    return HubbleCli(programs / "hubble", ("--server", relay), environment=cluster.environment)


def curl(cluster: Handle, client: str, *arguments: str) -> str:
    try:
        return cluster.exec(client, "curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", *arguments)
    except CommandFailedError as error:
        return f"curl {error.code}"


@pytest.fixture(scope="module")
def traffic(cluster: Handle, pods: None, cli: HubbleCli) -> list[JsonFlow]:
    """The flows of requests that pass and are refused, of both nodes, TCP and UDP, IPv4 and IPv6."""
    eventually(lambda: curl(cluster, "client-1", "http://till/admin") == "403", "the policy is in force on node 2")
    eventually(lambda: curl(cluster, "client-2", "http://web/admin") == "403", "the policy is in force on node 1")
    assert curl(cluster, "client-1", "http://web/api/one") == "200"
    assert curl(cluster, "client-1", "-X", "POST", "http://web/api/one") == "403"
    trace = f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01"
    assert curl(cluster, "client-2", "-H", trace, "http://till/api/two") == "200"
    assert curl(cluster, "stranger", "http://till/api/three") == "curl 7"
    addresses = [one["ip"] for one in cluster.get("pod", "web")["status"]["podIPs"]]
    (sixth,) = (one for one in addresses if ":" in one)
    assert curl(cluster, "client-2", f"http://[{sixth}]:8080/api/six") == "200"
    datagram = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{addresses[0]}', 53))"
    cluster.exec("client-1", "python3", "-c", datagram)
    wanted = {"/api/one": "GET", "/api/two": "GET", "/api/six": "GET"}

    def seen() -> bool:
        found = cli.flows("--all")
        there = {path(one): http(one)["method"] for one in found if http(one).get("method") == "GET"}
        return wanted.items() <= there.items() and any("UDP" in one["l4"] for one in found)

    eventually(seen, "Relay has the flows of all requests")
    return cli.flows("--all")


class TestRelay:
    def test_status_counts_both_nodes(self, cluster: Handle, programs: Path, release: tuple[str, ...]) -> None:
        """As an operator types it, through a port-forward of `hubble`'s own."""
        cli = HubbleCli(programs / "hubble", ("-P", "--port-forward-port", "14245"), environment=cluster.environment)
        said = cli.run("status").stdout
        assert "Healthcheck (via 127.0.0.1:14245): Ok" in said
        assert "Connected Nodes: 2/2" in said

    def test_nodes_are_listed(self, cluster: Handle, cli: HubbleCli) -> None:
        listed = json.loads(cli.run("list", "nodes", "-o", "json").stdout)
        assert [(one["name"], one["state"]) for one in listed] == [
            (node.name, "NODE_CONNECTED") for node in cluster.nodes
        ]
        assert all(one["tls"]["enabled"] for one in listed)

    def test_flows_are_those_of_both_nodes(self, cluster: Handle, traffic: list[JsonFlow]) -> None:
        assert {one["node_name"] for one in traffic} == {node.name for node in cluster.nodes}
        refused = {(pod_of(one, "source"), path(one)) for one in traffic if one["verdict"] == "DROPPED" and http(one)}
        assert {("default/client-1", "/admin"), ("default/client-2", "/admin")} <= refused
        assert all(one.get("time") and one.get("Summary") is not None for one in traffic)

    def test_namespaces_are_listed(self, cli: HubbleCli, traffic: list[JsonFlow]) -> None:
        assert cli.run("list", "namespaces").stdout.split() == ["NAMESPACE", "default"]

    def test_each_flag_of_observe_selects_what_it_says(self, cli: HubbleCli, traffic: list[JsonFlow]) -> None:
        faults, empty = wrong(cli, "client-1", "web")
        assert not faults, "\n".join(faults)
        never = ("fqdn", "--interface", "--snat-ip", "--ip-trace-id", "--encrypted", "--http-header", "--until")
        not_here = ("workload", "service", "egress")
        assert not {one for one in empty if not any(part in one for part in (*never, *not_here))}

    def test_last_is_for_each_node(self, cli: HubbleCli, traffic: list[JsonFlow]) -> None:
        found = cli.flows("--last", "1")
        assert sorted(one["node_name"] for one in found) == sorted({one["node_name"] for one in traffic})

    def test_a_follower_sees_each_refusal_while_traffic_runs(self, cluster: Handle, cli: HubbleCli) -> None:
        command = cli.argv("observe", "--follow", "--verdict", "DROPPED", "--http-path", "^/admin/follow", "-o", "json")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
            try:
                time.sleep(1)  # `--follow` begins with what comes after it: the first requests may be too early
                assert follower.stdout
                done = []
                for number in range(20):
                    done.append(f"/admin/follow/{number}")
                    client, server = ("client-1", "till") if number % 2 else ("client-2", "web")
                    assert curl(cluster, client, f"http://{server}{done[-1]}") == "403"
                seen: list[str] = []
                while done[-1] not in seen:
                    seen += [path(one) for one in flows_in([follower.stdout.readline()])]
                assert set(seen) == set(done[-len(set(seen)) :])
                assert len(seen) == len(set(seen)) > 10
            finally:
                follower.kill()


class TestWhoMayRead:
    def test_relay_listens_on_127_0_0_1_of_its_pod(self, cluster: Handle, relay: str, pods: None) -> None:
        """So a pod reads no flows; who may port-forward does."""
        (found,) = cluster.get("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=hubble-relay")["items"]
        address = found["status"]["podIP"]
        with pytest.raises(CommandFailedError) as refused:
            cluster.exec("stranger", "curl", "-s", "-m", "5", f"telnet://{address}:4245")
        assert refused.value.code == 7

    def test_an_agent_answers_none_without_a_certificate(self, cluster: Handle, relay: str, pods: None) -> None:
        node = cluster.nodes[0]
        address = next(one["address"] for one in cluster.get("node", node.name)["status"]["addresses"])
        for scheme, how in (("http", "--http2-prior-knowledge"), ("https", "--insecure")):
            url = f"{scheme}://{address}:4244/observer.Observer/ServerStatus"
            with pytest.raises(CommandFailedError) as refused:
                cluster.exec("stranger", "curl", "-s", "-m", "10", how, url)
            assert refused.value.code in CUT, refused.value

    def test_health_has_both_names(self, cluster: Handle, relay: str) -> None:
        with grpc.insecure_channel(relay) as channel:
            for name in ("", "hubble.server.Observer"):
                asked = health_pb2.HealthCheckRequest(service=name)
                answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=20)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING


@dataclass(slots=True)
class Load:
    process: subprocess.Popen[str]

    def result(self) -> dict[str, Any]:
        said, _ = self.process.communicate(timeout=180)
        found: dict[str, Any] = json.loads(said)
        return found


def load(cluster: Handle, client: str, server: str, seconds: int) -> Load:
    command = [str(cluster.parts.kubectl), "exec", client, "--", "python3", "-c", LOAD, server, str(seconds)]
    return Load(subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, text=True))


def assert_unaffected(result: dict[str, Any]) -> None:
    assert set(result["counts"]) == {"/api/load 200", "/admin/load 403"}, result
    assert result["slowest"] < 5, result


class TestBadReaders:
    def test_a_killed_follower_and_a_stalled_one_leave_traffic_alone(
        self, cluster: Handle, cli: HubbleCli, traffic: list[JsonFlow], tmp_path: Path
    ) -> None:
        out = tmp_path / "flows.jsonl"
        with out.open("w") as file:
            stalled = subprocess.Popen(cli.argv("observe", "--follow", "-o", "json"), stdout=file)
        killed = subprocess.Popen(cli.argv("observe", "--follow"), stdout=subprocess.DEVNULL)
        try:
            running = load(cluster, "client-1", "till", 28)
            eventually(lambda: "/api/load" in out.read_text(), "the follower sees the load")
            stalled.send_signal(signal.SIGSTOP)
            killed.kill()
            time.sleep(20)
            stalled.send_signal(signal.SIGCONT)
            assert_unaffected(running.result())

            def lost() -> int:
                lines = [json.loads(line) for line in out.read_text().splitlines() if '"lost_events"' in line]
                return sum(int(one["lost_events"]["num_events_lost"]) for one in lines)

            eventually(lost, "the loss is reported")
        finally:
            for one in (killed, stalled):
                one.kill()
                one.wait()
        assert "Connected Nodes: 2/2" in cli.run("status").stdout


class TestCertificates:
    """By the kept Secrets: `helm upgrade` leaves them, and makes those anew that are gone; nothing restarts."""

    def test_an_upgrade_keeps_them(self, cluster: Handle, release: tuple[str, ...]) -> None:
        before = secrets(cluster)
        cluster.helm("upgrade", RELEASE, str(CHART), "-n", SYSTEM, *release)
        assert secrets(cluster) == before

    def test_a_renewed_one_is_taken_over_without_a_restart(
        self, cluster: Handle, release: tuple[str, ...], cli: HubbleCli
    ) -> None:
        before, pods_before = secrets(cluster), agents(cluster)
        cluster.kubectl("delete", "secret", "-n", SYSTEM, "hubble-server-certs")
        cluster.helm("upgrade", RELEASE, str(CHART), "-n", SYSTEM, *release)
        after = secrets(cluster)
        assert after["hubble-ca"] == before["hubble-ca"]
        assert after["hubble-relay-client-certs"] == before["hubble-relay-client-certs"]
        new = base64.b64decode(after["hubble-server-certs"]["tls.crt"])
        assert after["hubble-server-certs"] != before["hubble-server-certs"]

        def shown() -> bool:
            return all(served(cluster, node.name).strip() == new.strip() for node in cluster.nodes)

        eventually(shown, "both agents show the new certificate", 180)
        assert agents(cluster) == pods_before
        assert "Connected Nodes: 2/2" in cli.run("status").stdout


def secrets(cluster: Handle) -> dict[str, dict[str, str]]:
    names = ("hubble-ca", "hubble-server-certs", "hubble-relay-client-certs")
    return {name: cluster.get("secret", "-n", SYSTEM, name)["data"] for name in names}


def agents(cluster: Handle) -> dict[str, int]:
    """Pods of agents, with their restarts."""
    listed = cluster.get("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=agent")["items"]
    return {one["metadata"]["name"]: one["status"]["containerStatuses"][0]["restartCount"] for one in listed}


def served(cluster: Handle, node: str) -> bytes:
    """The certificate at port 4244 of a node, as PEM."""
    machine = next(one for one in cluster.nodes if one.name == node)
    program = "import ssl; print(ssl.get_server_certificate(('127.0.0.1', 4244)))"
    return cluster.in_node(machine, sys.executable, "-c", program).encode()
