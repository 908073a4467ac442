"""Policies in files: validate and trace use the code that enforces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from l7proxy.errors import ConfigError
from l7proxy.simulate import trace
from l7proxy.simulate.cluster import Cluster, is_invented
from l7proxy.sources.files.scan import load
from tests.unit.cli.conftest import Agent, Run

CLUSTER = """
apiVersion: v1
kind: Node
metadata: {name: node-1}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-2}
---
apiVersion: v1
kind: Pod
metadata: {name: backend, labels: {app: backend}}
spec:
  nodeName: node-1
  containers: [{name: c, ports: [{name: http, containerPort: 80}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: backend-2, labels: {app: backend-2, tier: web}}
spec: {nodeName: node-2, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: frontend, labels: {app: frontend}}
spec: {nodeName: node-2, containers: [{name: c}]}
status: {podIP: 10.2.0.9}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, labels: {app: stranger}}
spec: {nodeName: node-1, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: agent, labels: {app: frontend}}
spec: {nodeName: node-1, hostNetwork: true, containers: [{name: c}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: backend}, ports: [{name: http, port: 8080, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: none}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: backend}, ports: [{port: 80}]}
"""
POLICY = (Path(__file__).parents[2] / "data/cilium-l7-policy.yaml").read_text()
EGRESS = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: stay-in}
spec:
  endpointSelector: {matchLabels: {app: stranger}}
  egress:
  - toEndpoints: [{matchLabels: {app: backend}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"""


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    directory = tmp_path / "m"
    directory.mkdir()
    (directory / "cluster.yaml").write_text(CLUSTER)
    (directory / "policy.yaml").write_text(POLICY)
    (directory / "egress.yaml").write_text(EGRESS)
    return directory


@pytest.mark.parametrize(
    ("flags", "verdict", "direction", "policy"),
    [
        ("--from default/frontend --to default/backend --port 80/TCP", "REDIRECTED", "INGRESS", "l7-policy"),
        ("--from default/frontend --to default/backend --port http/TCP", "REDIRECTED", "INGRESS", "l7-policy"),
        ("--from 10.2.0.9 --to default/backend --port 80", "REDIRECTED", "INGRESS", "l7-policy"),
        ("--from default/frontend --to svc:default/web --port 8080/TCP", "REDIRECTED", "INGRESS", "l7-policy"),
        ("--from default/frontend --to svc:default/web --port http/TCP", "REDIRECTED", "INGRESS", "l7-policy"),
        ("--from default/frontend --to default/backend --port 81/TCP", "DROPPED", "INGRESS", "l7-policy"),
        ("--from default/frontend --to default/backend --port 80/UDP", "DROPPED", "INGRESS", "l7-policy"),
        ("--from default/frontend --to default/backend --port 8/ICMPv4", "DROPPED", "INGRESS", "l7-policy"),
        ("--from default/stranger --to default/backend --port 80/TCP", "DROPPED", "INGRESS", "l7-policy"),
        ("--from default/stranger --to default/backend --port 81/TCP", "DROPPED", "EGRESS", "stay-in"),
        ("--from default/stranger --to 8.8.8.8 --port 53/UDP", "DROPPED", "EGRESS", "stay-in"),
        ("--from default/frontend --to 8.8.8.8 --port 53/UDP", "FORWARDED", None, None),
        ("--from default/backend --to default/backend --port 1/TCP", "FORWARDED", None, None),
        ("--from node-1 --to default/backend --port 80/TCP", "FORWARDED", "INGRESS", "allow-localhost"),
        ("--from 192.168.0.1 --to default/backend --port 9/TCP", "FORWARDED", "INGRESS", "allow-localhost"),
        ("--from node-2 --to default/backend --port 80/TCP", "DROPPED", "INGRESS", "l7-policy"),
        ("--from default/agent --to default/backend --port 9/TCP", "FORWARDED", "INGRESS", "allow-localhost"),
        ("--from reserved:host --to default/backend --port 9/TCP", "FORWARDED", "INGRESS", "allow-localhost"),
        ("--from reserved:remote-node --to default/backend --port 80/TCP", "DROPPED", "INGRESS", "l7-policy"),
        ("--from 8.8.8.8 --to default/backend --port 80/TCP", "DROPPED", "INGRESS", "l7-policy"),
        ("--from 8.8.8.8 --to default/frontend --port 80/TCP", "FORWARDED", None, None),
        ("--from 8.8.8.8 --to node-1 --port 22/TCP", "FORWARDED", None, None),
    ],
)
def test_connections(
    run: Run, manifests: Path, flags: str, verdict: str, direction: str | None, policy: str | None
) -> None:
    found = run("policy", "trace", "-f", str(manifests), *flags.split(), "-o", "json")
    assert found.returncode == (1 if verdict == "DROPPED" else 0), found.stderr
    answer = json.loads(found.stdout)
    assert set(answer) == {"verdict", "direction", "policy", "reason", "steps"}
    assert (answer["verdict"], answer["direction"]) == (verdict, direction)
    assert (answer["policy"] or {}).get("name") == policy
    assert bool(answer["reason"]) is (verdict == "DROPPED")
    assert answer["steps"]


@pytest.mark.parametrize(
    ("http", "headers", "verdict", "said"),
    [
        ("GET /api/x", [], "FORWARDED", "rules.http[0]"),
        ("GET /admin", [], "DROPPED", "method GET matched"),
        ("POST /api/data", [], "DROPPED", "X-Token"),
        ("POST /api/data", ["X-Token: anything"], "FORWARDED", "rules.http[1]"),
        ("GET /api/../admin", [], "DROPPED", "request GET /admin, Host backend (normalised from /api/../admin)"),
        ("GET /api//x", [], "FORWARDED", "request GET /api/x"),
        ("GET /x%2fapi/y", [], "DROPPED", "answered with 307"),
        ("GET /api/x#f", [], "DROPPED", "answered with 400"),
        ("GET /api/x", ["Host: a", "Host: b"], "DROPPED", "answered with 400"),
        ("GET /api/x", ["Transfer-Encoding: xchunked"], "DROPPED", "answered with 400"),
        ("GET /api/x", ["Host: other"], "FORWARDED", "Host other"),
    ],
)
def test_requests(run: Run, manifests: Path, http: str, headers: list[str], verdict: str, said: str) -> None:
    flags = ["-f", str(manifests), "--from", "default/frontend", "--to", "default/backend", "--port", "80/TCP"]
    flags += ["--http", http, *(part for header in headers for part in ("-H", header))]
    found = run("policy", "trace", *flags)
    assert found.returncode == (1 if verdict == "DROPPED" else 0), found.stderr
    assert said in found.stdout
    assert found.stdout.splitlines()[-1].startswith(verdict)
    answer = json.loads(run("policy", "trace", *flags, "-o", "json").stdout)
    assert (answer["verdict"], answer["direction"], answer["policy"]["name"]) == (verdict, "INGRESS", "l7-policy")


def test_an_unsupported_policy_refuses_in_a_trace_as_it_does_in_force(run: Run, manifests: Path) -> None:
    (manifests / "dns.yaml").write_text(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: dns}\nspec:\n"
        "  endpointSelector: {matchLabels: {app: frontend}}\n"
        "  egress: [{toPorts: [{ports: [{port: '80'}], serverNames: [a.b]}]}]\n"
    )
    flags = ("--from", "default/frontend", "--to", "default/backend", "--port", "80/TCP", "-o", "json")
    found = run("policy", "trace", "-f", str(manifests), *flags)
    assert found.returncode == 1
    answer = json.loads(found.stdout)
    assert (answer["direction"], answer["policy"]["name"]) == ("EGRESS", "dns")
    assert answer["reason"].startswith("policy default/dns is partly enforced: spec.egress[0].toPorts[0].serverNames")


def test_one_backend_that_refuses_makes_a_service_refuse(run: Run, manifests: Path) -> None:
    (manifests / "more.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: both}\nspec: {ports: [{port: 80}]}\n---\n"
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: both-1\n"
        "  labels: {kubernetes.io/service-name: both}\naddressType: IPv4\nports: [{port: 9000}]\n"
        "endpoints: [{addresses: [10.2.0.9]}, {addresses: [10.2.0.10]}]\n---\n"
        "apiVersion: v1\nkind: Pod\nmetadata: {name: closed, labels: {app: backend}}\n"
        "spec: {nodeName: node-1, containers: [{name: c}]}\nstatus: {podIP: 10.2.0.10}\n"
    )
    flags = ("--from", "default/stranger-2", "--to", "svc:default/both", "--port", "80/TCP")
    assert run("policy", "trace", "-f", str(manifests), *flags).returncode == 2
    found = run("policy", "trace", "-f", str(manifests), "--from", "default/backend-2", *flags[2:])
    assert found.returncode == 1
    assert "1 of 2 backends are refused" in found.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--from default/nobody --to default/backend --port 80", "no pod default/nobody"),
        ("--from nowhere --to default/backend --port 80", "must be NS/POD"),
        ("--from reserved:martian --to default/backend --port 80", "reserved:martian: unknown"),
        ("--from default/frontend --to svc:web --port 80", "svc:NAMESPACE/NAME"),
        ("--from default/frontend --to svc:default/nosuch --port 80", "no Service default/nosuch"),
        ("--from default/frontend --to svc:default/web --port 81", "has no port 81"),
        ("--from default/frontend --to svc:default/none --port 80", "no endpoints for port 80"),
        ("--from default/frontend --to svc:default/headless --port 80", "headless"),
        ("--from svc:default/web --to default/backend --port 80", "no pod svc:default/web"),
        ("--from default/frontend --to default/backend --port metrics/TCP", "no port named 'metrics'"),
        ("--from default/frontend --to default/backend --port 80/TPC", "unknown protocol 'TPC'"),
        ("--from default/frontend --to default/backend --port 70000/TCP", "--port 70000/TCP"),
        ("--from default/frontend --to default/backend --port 256/ICMPv4", "--port 256/ICMPv4"),
        ("--from default/frontend --to default/backend --port /TCP", "--port /TCP"),
        ("--from default/frontend --to default/backend --port 80 -H a:b", "-H requires --http"),
        ("--from default/frontend --to default/backend --port 80/UDP --http GET", "requires a TCP port"),
        ("--from default/frontend --to default/backend --port 80 --http GET", "METHOD TARGET"),
        ("--from default/frontend --to default/backend", "--port"),
    ],
)
def test_what_cannot_be_traced_is_exit_code_2(run: Run, manifests: Path, flags: str, said: str) -> None:
    found = run("policy", "trace", "-f", str(manifests), *flags.split())
    assert (found.returncode, found.stdout) == (2, "")
    assert said in found.stderr
    assert "Traceback" not in found.stderr


def test_a_missing_path_is_an_error_and_a_broken_file_a_warning(run: Run, manifests: Path) -> None:
    flags = ("--from", "default/frontend", "--to", "default/backend", "--port", "80")
    missing = run("policy", "trace", "-f", str(manifests / "gone"), *flags)
    assert (missing.returncode, "no such file" in missing.stderr) == (2, True)
    (manifests / "broken.yaml").write_text("kind: [")
    found = run("policy", "trace", "-f", str(manifests), *flags)
    assert found.returncode == 0
    assert found.stderr.startswith("warning: ")
    assert "broken.yaml" in found.stderr


@pytest.mark.parametrize("part", ["GET /\r\nX: y", "GET /\u00e9", "GET /\0"])
def test_a_request_is_one_line_of_ascii(part: str) -> None:
    with pytest.raises(ConfigError, match="single line of ASCII"):
        trace.request_of(part, [], "host")
    with pytest.raises(ConfigError, match="single line of ASCII"):
        trace.request_of("GET /", [f"X: {part}"], "host")


def test_invented_addresses_are_of_the_cluster_s_family_and_nobody_s(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CLUSTER)
    resources: Any = Cluster.of(load([tmp_path / "c.yaml"])[0]).resources
    addresses = [address for resource in resources for address in resource.addresses]
    assert len(set(addresses)) == len(addresses) > 5
    assert [one for one in addresses if not is_invented(one)] == ["192.168.0.1", "10.2.0.9"]
    (tmp_path / "c.yaml").write_text(CLUSTER.replace("10.2.0.9", "fd00::9").replace("192.168.0.1", "fd00::1"))
    resources = Cluster.of(load([tmp_path / "c.yaml"])[0]).resources
    assert all(":" in address for resource in resources for address in resource.addresses)


BAD = """apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bad}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoint:
    - {}
"""


def test_a_valid_policy_is_exit_code_0_and_warnings_and_notes_are_told(run: Run) -> None:
    noted = "  - toPorts: [{ports: [{port: '90', endPort: 80}]}]\n"
    found = run("policy", "validate", "-", stdin=POLICY.rstrip() + "\n" + noted)
    assert found.returncode == 0
    assert found.stdout.splitlines() == [
        "-:20: warning: get-without-head: GET of /api/.* is allowed but HEAD is not",
        "-:25: warning: header-regex: the value is also matched as a whole-string regular expression",
        "-:26: note: spec.ingress[1].toPorts[0].ports[0].endPort: is less than port, so this matches only port 90",
        "valid: 1 policy",
    ]


def test_each_fault_is_file_line_field_and_message(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BAD)
    (tmp_path / "b.yml").write_text("kind: [")
    (tmp_path / "dns.yaml").write_text(BAD.replace("name: bad", "name: dns").replace("fromEndpoint:", "fromGroups:"))
    found = run("policy", "validate", str(tmp_path))
    assert found.returncode == 1
    first, second, third = found.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/a.yaml:7: spec.ingress[0].fromEndpoint: ")
    assert "fromEndpoints" in first, "the nearest known field is named"
    assert second.startswith(f"{tmp_path}/b.yml:2: not valid YAML")
    assert third.startswith(f"{tmp_path}/dns.yaml:7: spec.ingress[0].fromGroups")
    answer = json.loads(run("policy", "validate", str(tmp_path), "-o", "json").stdout)
    assert answer["valid"] is False
    fault = answer["faults"][0]
    assert (fault["file"], fault["line"], fault["field"]) == (
        f"{tmp_path}/a.yaml",
        7,
        "spec.ingress[0].fromEndpoint",
    )


def test_several_faults_of_one_policy_are_told_at_once(run: Run) -> None:
    found = run("policy", "validate", "-", stdin=BAD + "  egress:\n  - toCIDR: [10.0.0.0/99]\n")
    assert found.returncode == 1
    assert [line.split(": ")[:2] for line in found.stdout.splitlines()] == [
        ["-:7", "spec.ingress[0].fromEndpoint"],
        ["-:10", "spec.egress[0].toCIDR[0]"],
    ]


def test_all_faults_of_one_rule_are_told_in_line_order(run: Run) -> None:
    rest = "    fromCIDR:\n    - x\n    - 10.0.0.0/99\n    toPort: []\n  ingres: []\n"
    found = run("policy", "validate", "-", stdin=BAD + rest)
    assert found.returncode == 1
    assert [line.split(": ")[:2] for line in found.stdout.splitlines()] == [
        ["-:7", "spec.ingress[0].fromEndpoint"],
        ["-:10", "spec.ingress[0].fromCIDR[0]"],
        ["-:11", "spec.ingress[0].fromCIDR[1]"],
        ["-:12", "spec.ingress[0].toPort"],
        ["-:13", "spec.ingres"],
    ]


def test_of_many_faults_ten_are_told_and_that_there_are_more(run: Run) -> None:
    found = run("policy", "validate", "-", stdin=BAD + "    fromCIDR:\n" + "    - x\n" * 50)
    assert found.returncode == 1
    first, *others = found.stdout.splitlines()
    assert first == "-:1: only the first 10 errors of this CiliumNetworkPolicy are shown"
    assert len(others) == 10


def test_two_pods_with_one_address_are_a_fault(run: Run, tmp_path: Path) -> None:
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: NAME}\nspec: {nodeName: n}\nstatus: {podIP: 10.0.0.1}\n"
    (tmp_path / "p.yaml").write_text(pod.replace("NAME", "a") + "---\n" + pod.replace("NAME", "b"))
    found = run("policy", "validate", str(tmp_path))
    assert found.returncode == 1
    assert "10.0.0.1" in found.stdout


def test_a_policy_that_selects_no_pod_given_is_a_warning(run: Run, manifests: Path) -> None:
    assert "selects none" not in run("policy", "validate", str(manifests)).stdout
    (manifests / "policy.yaml").write_text(POLICY.replace("app: backend", "app: bakcend"))
    found = run("policy", "validate", str(manifests))
    assert found.returncode == 0
    assert "warning: selects-no-pod: CiliumNetworkPolicy l7-policy selects none of the given pods" in found.stdout
    assert "selects none" not in run("policy", "validate", str(manifests / "policy.yaml")).stdout


def test_a_file_that_is_not_there_is_a_fault(run: Run, tmp_path: Path) -> None:
    found = run("policy", "validate", str(tmp_path / "gone.yaml"))
    assert found.returncode == 1
    assert "gone.yaml: no such file or directory" in found.stdout


REF = {"kind": "CiliumNetworkPolicy", "namespace": "default", "name": "l7", "rule": "spec.ingress[0]"}
ENFORCED = {
    "id": 5,
    "namespace": "default",
    "name": "backend",
    "identity": 5678,
    "revision": 4,
    "egress": None,
    "ingress": {
        "tiers": [
            {
                "name": "default",
                "denied_by": [REF | {"rule": ""}],
                "audited_by": [],
                "stages": [
                    [
                        {
                            "action": "redirect",
                            "audit": False,
                            "peers": [1204],
                            "protocol": "TCP",
                            "first": 80,
                            "last": 80,
                            "rule": REF,
                            "refusal": "",
                            "l7": "http",
                            "http": [
                                {
                                    "method": "GET",
                                    "path": "/a",
                                    "host": None,
                                    "headers": ["x-token: .*"],
                                    "rule": REF,
                                },
                                {"method": None, "path": None, "host": None, "headers": [], "rule": REF},
                            ],
                        },
                        {
                            "action": "allow",
                            "audit": False,
                            "peers": None,
                            "protocol": None,
                            "first": 0,
                            "last": 65535,
                            "rule": REF,
                            "refusal": "",
                            "l7": None,
                            "http": None,
                        },
                    ],
                ],
            },
        ],
    },
}


def test_policy_get_shows_each_direction_rule_by_rule(run: Run, agent: Agent) -> None:
    agent.says("policy", {"policy": [ENFORCED]})
    assert run("policy", "get", "default/backend").stdout.splitlines() == [
        "default/backend (endpoint 5)",
        "  ingress:",
        "    tier default",
        "    STAGE  ACTION    PEERS  PORT        RULE",
        "    1      redirect  1204   80/TCP      default/l7 spec.ingress[0]",
        "                              http      default/l7 spec.ingress[0]  method GET, path /a, header x-token: .*",
        "                              http      default/l7 spec.ingress[0]  every request",
        "    1      allow     any    every port  default/l7 spec.ingress[0]",
        "    default: traffic that no rule allows is denied, by default/l7",
        "  egress: open: not selected by any policy",
    ]
    assert agent.asked == [{"method": "policy", "endpoint": "default/backend"}]
    assert json.loads(run("policy", "get", "-o", "json").stdout) == [ENFORCED]
    assert agent.asked[1] == {"method": "policy"}


def test_policy_get_says_who_its_peers_are(run: Run, agent: Agent) -> None:
    cluster = "k8s:io.cilium.k8s.policy.cluster=default"
    known = {"1": ["reserved:host"], "1204": ["k8s:app=a", cluster]} | {
        str(n): [f"k8s:n={n}"] for n in range(2000, 2030)
    }
    agent.says("policy", {"policy": [ENFORCED | {"identities": known}]})
    lines = run("policy", "get", "default/backend").stdout.splitlines()
    place = lines.index("  peers:")
    assert lines[place + 1 : place + 3] == ["    1: reserved:host", "    1204: k8s:app=a"]
    assert lines[-1] == "    and 2 more: l7proxy identity list"


def test_policy_list_shows_states_and_reasons(run: Run, agent: Agent) -> None:
    states = [
        {"kind": "CiliumNetworkPolicy", "namespace": "default", "name": "l7", "state": "enforced", "reason": ""},
        {"kind": "NetworkPolicy", "namespace": "a", "name": "b", "state": "refused", "reason": "not supported yet"},
    ]
    policies = [one | {"file": "p.yaml", "line": 2, "endpoints": index} for index, one in enumerate(states)]
    agent.says("policies", {"policies": policies})
    assert run("policy", "list").stdout.splitlines() == [
        "POLICY                          STATE     ENDPOINTS  FROM      REASON",
        "CiliumNetworkPolicy default/l7  enforced  0          p.yaml:2",
        "NetworkPolicy a/b               refused   1          p.yaml:2  not supported yet",
    ]
    assert json.loads(run("policy", "list", "-o", "json").stdout) == policies
