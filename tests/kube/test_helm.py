"""The chart on a real cluster, as its operator goes: install, policy, replace, upgrade, roll back, uninstall.

The tests run in this order, on one release. The image is that of `make image`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml

from deploy.cluster import images
from deploy.helm.generate import CHART, INSTALL
from tests.kube.handle import ROOT, CommandFailedError, Handle, eventually

IMAGE: Final = ROOT / "build" / "l7proxy.oci.tar"
SYSTEM: Final = "kube-system"
RELEASE: Final = "l7proxy"
BOTH: Final = ("ds/l7proxy", "ds/l7proxy-workers")
CLIENTS: Final = 150
"""On each of two nodes."""
SERVER: Final = """
from http.server import *
class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "3"); self.end_headers(); self.wfile.write(b"yes")
    do_POST = do_GET
    def log_message(self, *given): pass
class Server(ThreadingHTTPServer):
    request_queue_size = 512
Server(("", 8080), Answer).serve_forever()
"""
POLICY: Final[dict[str, Any]] = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumNetworkPolicy",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "endpointSelector": {"matchLabels": {"app": "web"}},
        "ingress": [
            {
                "fromEndpoints": [{"matchLabels": {"role": "client"}}],
                "toPorts": [
                    {
                        "ports": [{"port": "8080", "protocol": "TCP"}],
                        "rules": {"http": [{"method": "GET", "path": "/api/.*"}]},
                    }
                ],
            }
        ],
    },
}


def pod(name: str, node: str, labels: dict[str, str], command: list[str], **container: Any) -> dict[str, Any]:
    one = {"name": "c", "image": images.NETSHOOT, "imagePullPolicy": "Never", "command": command, **container}
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [one]}
    metadata = {"name": name, "namespace": "default", "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module")
def pods(cluster: Handle) -> Iterator[None]:
    """A client on each node, a stranger, and a server behind a Service."""
    sleep = ["sleep", "infinity"]
    first, second = (node.name for node in cluster.nodes)
    made = [
        pod("client-1", first, {"role": "client"}, sleep),
        pod("client-2", second, {"role": "client"}, sleep),
        pod("stranger", second, {"role": "other"}, sleep),
        pod("web", first, {"app": "web"}, ["python3", "-c", SERVER]),
    ]
    service = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}
    named = {"name": "web", "namespace": "default"}
    cluster.apply(*made, {"apiVersion": "v1", "kind": "Service", "metadata": named, "spec": service})
    cluster.kubectl(
        "wait", "--for=condition=Ready", "--timeout=90s", *(f"pod/{one['metadata']['name']}" for one in made)
    )
    yield
    cluster.kubectl("delete", "service/web", *(f"pod/{one['metadata']['name']}" for one in made), "--wait=true")


@pytest.fixture(scope="module")
def release(cluster: Handle, pods: None) -> Iterator[None]:
    assert IMAGE.exists(), "make image"
    cluster.load(IMAGE)
    cluster.helm("install", RELEASE, str(CHART), "-n", SYSTEM, "--set=image.tag=dev", "--wait", "--timeout=2m")
    yield
    cluster.kubectl("delete", "ciliumnetworkpolicy", "web", "--ignore-not-found")
    if RELEASE in cluster.helm("list", "-n", SYSTEM, "-q").split():
        cluster.helm("uninstall", RELEASE, "-n", SYSTEM)


def status(cluster: Handle, pod: str, path: str, *more: str) -> str:
    """The status of a request to the Service, or how curl failed."""
    try:
        command = ("curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", *more, f"http://web{path}")
        return cluster.exec(pod, *command)
    except CommandFailedError as error:
        return f"curl {error.code}"


def verdicts(cluster: Handle) -> dict[str, str]:
    """All that the policy says: allowed, refused by rule, refused by the kernel."""
    return {
        "same node": status(cluster, "client-1", "/api/x"),
        "other node": status(cluster, "client-2", "/api/x"),
        "other path": status(cluster, "client-2", "/admin"),
        "other method": status(cluster, "client-1", "/api/x", "-X", "POST"),
        "other pod": status(cluster, "stranger", "/api/x"),
    }


RIGHT: Final = {
    "same node": "200",
    "other node": "200",
    "other path": "403",
    "other method": "403",
    "other pod": "curl 7",
}


@pytest.mark.usefixtures("release")
class TestRelease:
    def test_a_policy_holds(self, cluster: Handle) -> None:
        assert set(verdicts(cluster).values()) == {"200"}
        cluster.apply(POLICY)
        eventually(lambda: verdicts(cluster) == RIGHT, "the policy is in force")
        assert "1 of 1 enforced" in cluster.exec("ds/l7proxy", "l7proxy", "status", namespace=SYSTEM)

    def test_flows_are_seen_by_kubectl(self, cluster: Handle) -> None:
        """On the server's node: its agent records the verdict."""
        node = cluster.nodes[0].name
        listed = cluster.get(
            "pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=agent", f"--field-selector=spec.nodeName={node}"
        )
        (agent,) = (one["metadata"]["name"] for one in listed["items"])
        status(cluster, "client-2", "/admin/flows")
        seen = cluster.exec(agent, "l7proxy", "observe", "--verdict", "DROPPED", "--last", "100", namespace=SYSTEM)
        assert "default/client-2" in seen
        assert "/admin/flows" in seen
        logged = [
            json.loads(line) for line in cluster.kubectl("logs", "-n", SYSTEM, agent).splitlines() if line[0] == "{"
        ]
        assert any("/admin/flows" in json.dumps(line.get("flow", {})) for line in logged)

    def test_helm_test_asks_every_node(self, cluster: Handle) -> None:
        assert "Succeeded" in cluster.helm("test", RELEASE, "-n", SYSTEM)

    def test_each_container_has_only_its_capabilities(self, cluster: Handle) -> None:
        """NET_ADMIN is bit 12, NET_RAW bit 13: capability.h."""
        for daemonset, bits in (("ds/l7proxy", 1 << 12 | 1 << 13), ("ds/l7proxy-workers", 1 << 12)):
            shown = dict(
                line.split(":", 1)
                for line in cluster.exec(daemonset, "cat", "/proc/1/status", namespace=SYSTEM).splitlines()
            )
            assert {int(shown[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {bits}
            assert (shown["NoNewPrivs"].strip(), shown["Seccomp"].strip()) == ("1", "2")
            with pytest.raises(CommandFailedError, match="Read-only file system"):
                cluster.exec(daemonset, "touch", "/etc/x", namespace=SYSTEM)

    def test_replacing_all_pods_fails_no_request(self, cluster: Handle) -> None:
        program = (ROOT / "tests" / "kube" / "keep_alive_load.py").read_text()
        loads = [
            subprocess.Popen(
                [
                    str(cluster.parts.kubectl),
                    "exec",
                    name,
                    "--",
                    "python3",
                    "-c",
                    program,
                    "web",
                    "80",
                    f"{CLIENTS}",
                    "45",
                ],
                env=cluster.environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in ("client-1", "client-2")
        ]
        for what in (BOTH[:1], BOTH[1:], BOTH):
            cluster.kubectl("rollout", "restart", "-n", SYSTEM, *what)
            for one in what:
                cluster.kubectl("rollout", "status", "-n", SYSTEM, one, "--timeout=90s")
        for load in loads:
            found = json.loads(load.communicate(timeout=120)[0])
            assert found["requests"] > CLIENTS * 10
            assert found["connections"] > CLIENTS  # the workers were replaced under these clients
            assert found["failures"] == {}

    def test_an_upgrade_changes_settings_and_a_rollback_restores_them(self, cluster: Handle) -> None:
        def config() -> str:
            return str(cluster.exec("ds/l7proxy", "cat", "/etc/l7proxy/config.yaml", namespace=SYSTEM))

        settings = ("--reuse-values", "--set=settings.deny-header=true", "--wait", "--timeout=2m")
        cluster.helm("upgrade", RELEASE, str(CHART), "-n", SYSTEM, *settings)
        eventually(lambda: "deny-header: true" in config(), "the kubelet has updated the ConfigMap", 150)

        def denied() -> str:
            return cluster.exec("client-1", "curl", "-s", "-m", "5", "-o", "/dev/null", "-D", "-", "http://web/admin")

        eventually(lambda: "x-l7proxy-denied" in denied(), "the setting is in force", 150)
        cluster.helm("rollback", RELEASE, "-n", SYSTEM, "--wait", "--timeout=2m")
        eventually(lambda: "deny-header" not in config(), "the kubelet has updated the ConfigMap", 150)
        assert verdicts(cluster) == RIGHT

    def test_a_wrong_value_is_refused_by_name(self, cluster: Handle) -> None:
        with pytest.raises(CommandFailedError, match="flow-lag"):
            cluster.helm("upgrade", RELEASE, str(CHART), "-n", SYSTEM, "--reuse-values", "--set=settings.flow-lag=x")

    def test_uninstalling_cleans_every_node_and_keeps_the_policies(self, cluster: Handle) -> None:
        cluster.helm("uninstall", RELEASE, "-n", SYSTEM)
        for node in cluster.nodes:
            assert "l7proxy" not in cluster.in_node(node, "nft", "list", "ruleset").lower()
            assert "7777" not in cluster.in_node(node, "ip", "rule")
            assert cluster.in_node(node, "cat", "/proc/sys/net/ipv4/tcp_migrate_req").strip() == "0"
            left = cluster.in_node(node, "find", "/run/l7proxy", "/var/lib/l7proxy", "-mindepth", "1")
            assert left == ""
        assert set(verdicts(cluster).values()) == {"200"}
        assert cluster.get("ciliumnetworkpolicy", "web")["spec"] == POLICY["spec"]
        listed = ("get", "daemonsets,jobs,sa,roles,rolebindings,configmaps", "-n", SYSTEM, "-o", "name")
        eventually(lambda: "l7proxy" not in cluster.kubectl(*listed), "nothing of the release is left", 30)


def test_the_api_server_accepts_all_that_the_chart_installs(cluster: Handle) -> None:
    cluster.kubectl("apply", "--dry-run=server", "-f", str(INSTALL))


def test_crds_of_another_program_are_left_alone(cluster: Handle) -> None:
    """After the tests above, the three CRDs are there, and of the release."""
    names = [f"{name}.cilium.io" for name in ("ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies")]
    for name in names:
        cluster.kubectl("annotate", "crd", name, "meta.helm.sh/release-name-")
    shown = cluster.helm("install", "again", str(CHART), "-n", SYSTEM, "--dry-run=server")
    found = [one for one in yaml.safe_load_all(shown.partition("MANIFEST:\n")[2].partition("NOTES:")[0]) if one]
    crds = {one["metadata"]["name"] for one in found if one["kind"] == "CustomResourceDefinition"}
    assert not crds & set(names)


def test_what_cilium_takes_our_crds_take(cluster: Handle, namespace: str) -> None:
    """And a misspelt field stays in the object, for l7proxy to refuse it by name."""
    for path in sorted((ROOT / "tests" / "policies" / "real-world").glob("cilium*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"].startswith("Cilium"):
                if "namespace" in document["metadata"]:
                    document["metadata"]["namespace"] = namespace
                cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(document))
    wrong = {**POLICY, "metadata": {"name": "misspelt", "namespace": namespace}}
    wrong["spec"] = {"endpointSelector": {}, "ingress": [{"toPort": []}]}
    cluster.apply(wrong)
    assert cluster.get("cnp", "misspelt", "-n", namespace)["spec"]["ingress"] == [{"toPort": []}]
