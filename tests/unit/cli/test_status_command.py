"""Status and lists, against a fake agent that answers as the real one's contract defines."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from l7proxy.cli import status
from l7proxy.errors import ConfigError
from tests.unit.cli.conftest import Agent, Run

WELL: dict[str, Any] = {
    "node": "node-1",
    "version": "0.1.0",
    "backend": "nftables",
    "revision": 4,
    "enforced_revision": 4,
    "source": {
        "kind": "files",
        "location": "/m",
        "reachable": True,
        "age": 0.5,
        "synced": True,
        "detail": {"a.yaml": 1},
        "problems": [],
    },
    "kernel": {"digest": "abc", "intact": True, "error": "", "restored": 0},
    "workers": [
        {
            "pid": 7,
            "worker": 0,
            "revision": 4,
            "connections": 2,
            "requests": 30,
            "denied": 3,
            "lost": 0,
            "problems": [],
        }
    ],
    "policies": [
        {
            "kind": "CiliumNetworkPolicy",
            "namespace": "default",
            "name": "l7",
            "state": "enforced",
            "reason": "",
            "file": "a.yaml",
            "line": 2,
            "endpoints": 1,
        }
    ],
    "endpoints": [
        {
            "id": 5,
            "namespace": "default",
            "name": "backend",
            "addresses": ["10.0.0.20", "fd00::20"],
            "identity": 5678,
            "ingress": "l7",
            "egress": "open",
            "port": {"interface": "veth1", "mac": "", "bridge": ""},
        },
        {
            "id": 6,
            "namespace": "shop",
            "name": "backend",
            "addresses": ["10.0.0.21"],
            "identity": 5679,
            "ingress": "open",
            "egress": "open",
            "port": None,
        },
    ],
    "flows": {"seen": 61, "lost": 0, "capacity": 4095},
}


def with_(path: str, value: Any) -> dict[str, Any]:
    """WELL with one value changed, at a path such as `kernel.intact`."""
    found = copy.deepcopy(WELL)
    *way, last = path.split(".")
    inner: Any = found
    for key in way:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner[last] = value
    return found


def test_all_enforced_is_exit_code_0(process: Run, agent: Agent) -> None:
    agent.says("status", WELL)
    found = process("status")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.splitlines() == [
        "Node       node-1  (l7proxy 0.1.0)",
        "State      all enforced, revision 4 of 4",
        "Source     files /m: 1 file",
        "Kernel     nftables, intact",
        "Policies   1 of 1 enforced",
        "Endpoints  2, 1 with L7 rules",
        "Flows      61 seen, 0 lost, buffer of 4095",
        "",
        "WORKER  PID  REVISION  CONNECTIONS  REQUESTS  DENIED",
        "0       7    4         2            30        3",
    ]


def test_what_has_no_flow_is_counted(process: Run, agent: Agent) -> None:
    one = {"source": "10.0.0.9", "pod": "default/flood", "endpoint": 5, "policy_of": "default/backend",
           "direction": "ingress", "reason": "not allowed", "packets": 3900}  # fmt: skip
    port = {"source": "veth7", "pod": "", "endpoint": 0, "policy_of": "", "direction": "egress", "reason": "spoof",
            "packets": 7}  # fmt: skip
    agent.says("status", with_("flows.rate_limited", [one, port, port | {"source": ""}]))
    found = process("status")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.partition("(rate limit):\n")[2].splitlines() == [
        "  3900 packets from default/flood: not allowed by ingress policy of default/backend",
        "  7 packets from veth7: spoof",
        "  7 packets from other senders: spoof",
    ]


def test_what_each_exporter_wrote_and_lost_is_listed(process: Run, agent: Agent) -> None:
    full = {"name": "flow log", "written": 3, "lost": 7, "problem": "flow log /f: No space left"}
    well = {"name": "exporter refused", "written": 12, "lost": 0, "problem": ""}
    agent.says("status", with_("flows.sinks", [full, well]))
    found = process("status")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.splitlines()[-3:] == [
        "FLOWS TO          WRITTEN  LOST  PROBLEM",
        "flow log          3        7     flow log /f: No space left",
        "exporter refused  12       0     -",
    ]


def test_what_the_shadow_policies_would_do_is_said(process: Run, agent: Agent) -> None:
    shadow = {"policies": "/etc/shadow-policies", "problem": "", "would": {"denied": 2, "unchanged": 5}}
    agent.says("status", {**WELL, "shadow": shadow})
    assert "Shadow     /etc/shadow-policies: 2 denied, 5 unchanged\n" in process("status").stdout
    agent.says("status", {**WELL, "shadow": shadow | {"would": {}, "problem": "no such directory"}})
    assert "Shadow     /etc/shadow-policies: no flows yet; no such directory\n" in process("status").stdout


@pytest.mark.parametrize(("audit", "state"), [(False, "traffic refused"), (True, "allowed (audit)")])
def test_pods_that_no_object_tells_of_are_named(process: Run, agent: Agent, audit: bool, state: str) -> None:
    unknown = [
        {"id": 1 << 24, "interface": "veth1", "addresses": ["10.1.0.9", "fd00::9"], "pod": ""},
        {"id": 2 + (1 << 24), "interface": "veth2", "addresses": ["10.1.0.10"], "pod": "default/web"},
    ]
    agent.says("status", WELL | {"unknown_pods": unknown, "audit": audit})
    found = process("status")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.partition("Unknown pods:\n")[2].splitlines() == [
        f"  pod interface veth1 (10.1.0.9, fd00::9): no Pod object, {state}",
        f"  pod interface veth2 (10.1.0.10) of default/web: no Pod object, {state}",
    ]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("enforced_revision", 3, "revision 4 is not enforced yet, still 3"),
        ("source.synced", False, "source: not fully read yet"),
        ("source.reachable", False, "source: not reached for 0 s: what was read last stays in force"),
        (
            "source.problems",
            [{"file": "b.yaml", "line": 3, "field": "spec", "message": "must be a mapping"}],
            "b.yaml:3: spec: must be a mapping",
        ),
        ("source.problems", [{"file": "b.yaml", "line": None, "field": "", "message": "gone"}], "b.yaml: gone"),
        ("kernel.error", "nft: not found", "kernel: nft: not found"),
        ("kernel.intact", False, "kernel: the rules differ from those installed"),
        ("workers", [], "no worker is connected"),
        ("workers.0.revision", 3, "worker 0 (pid 7) enforces revision 3"),
        ("workers.0.problems", ["rule x: bad pattern"], "worker 0: rule x: bad pattern"),
        ("policies.0.state", "refused", "CiliumNetworkPolicy default/l7: refused:"),
        ("policies.0.state", "invalid", "CiliumNetworkPolicy default/l7: invalid:"),
    ],
)
def test_whatever_is_not_enforced_is_said_with_exit_code_1(
    run: Run, agent: Agent, path: str, value: Any, said: str
) -> None:
    found = with_(path, value)
    agent.says("status", found)
    printed = run("status")
    assert printed.returncode == 1
    assert said in printed.stdout.partition("Not enforced:\n")[2]
    machine = run("status", "-o", "json")
    assert (machine.returncode, json.loads(machine.stdout)) == (1, found)


def test_an_agent_that_knows_nothing_yet_is_not_enforcing() -> None:
    assert list(status.troubles({}))


def test_endpoint_list_and_get(run: Run, agent: Agent) -> None:
    agent.says("endpoints", {"endpoints": WELL["endpoints"]})
    assert run("endpoint", "list").stdout.splitlines() == [
        "ID  POD              ADDRESSES           IDENTITY  INGRESS  EGRESS  PORT",
        "5   default/backend  10.0.0.20,fd00::20  5678      l7       open    veth1",
        "6   shop/backend     10.0.0.21           5679      open     open    unknown",
    ]
    assert json.loads(run("endpoint", "get", "6", "-o", "json").stdout) == WELL["endpoints"][1]
    assert json.loads(run("endpoint", "get", "backend", "-o", "json").stdout) == WELL["endpoints"][0]
    assert "addresses  10.0.0.21" in run("endpoint", "get", "shop/backend").stdout.splitlines()
    missing = run("endpoint", "get", "shop/nobody")
    assert missing.returncode == 2
    assert "no endpoint shop/nobody on this node (endpoints: default/backend, shop/backend)" in missing.stderr


def test_identity_and_service_list(run: Run, agent: Agent) -> None:
    identities = [
        {"id": 1, "labels": ["reserved:host"]},
        {"id": 5678, "labels": ["k8s:app=a", "k8s:b=c"], "networks": []},
        {"id": 5679, "labels": ["k8s:app=a", "k8s:b=c"], "networks": ["10.0.0.0/8", "10.0.1.0/24"]},
    ]
    agent.says("identities", {"identities": identities})
    assert run("identity", "list").stdout.splitlines() == [
        "ID    LABELS",
        "1     reserved:host",
        "5678  k8s:app=a k8s:b=c",
        "5679  k8s:app=a k8s:b=c (in 10.0.0.0/8, 10.0.1.0/24)",
    ]
    assert json.loads(run("identity", "list", "-o", "json").stdout) == identities
    backends = [{"address": "10.0.0.20", "port": 8080}, {"address": "fd00::20", "port": 8080}]
    service = {"namespace": "shop", "service": "web", "address": "10.96.0.5", "port": 80, "protocol": "TCP"}
    agent.says("services", {"services": [service | {"backends": backends}, service | {"backends": []}]})
    assert run("service", "list").stdout.splitlines() == [
        "SERVICE   FRONTEND          BACKENDS",
        "shop/web  10.96.0.5:80/TCP  10.0.0.20:8080, [fd00::20]:8080",
        "shop/web  10.96.0.5:80/TCP  none",
    ]


def test_empty_lists_say_so(run: Run, agent: Agent) -> None:
    agent.says("endpoints", {"endpoints": []})
    assert run("endpoint", "list").stdout == "No pods on this node.\n"
    assert run("endpoint", "list", "-o", "json").stdout == "[]\n"


@pytest.mark.parametrize(
    "command", ["status", "endpoint list", "identity list", "service list", "policy list", "observe"]
)
def test_without_an_agent_the_way_out_is_said(run: Run, tmp_path: Path, command: str) -> None:
    found = run(*command.split())
    assert found.returncode == 2
    assert found.stderr == (
        f"error: no agent at {tmp_path}/agent.sock: start it with `l7proxy run`, or set --run-dir or --server\n"
    )


def test_a_stale_socket_is_told_from_none(run: Run, tmp_path: Path) -> None:
    agent = Agent(tmp_path / "agent.sock")
    agent.close()
    found = run("status")
    assert found.returncode == 2
    assert "no agent is listening" in found.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\xff\xfe\n", "not valid JSON"),
        (b'{"node": "n"', "is incomplete"),
        (b"", "without a response"),
        (b"[]\n", "same version"),
        (b'{"error": "busy: \\u001b[2J"}\n', "error: busy: \\x1b[2J"),
    ],
)
def test_an_answer_that_is_none_is_an_error(run: Run, agent: Agent, line: bytes, said: str) -> None:
    agent.says("status", line)
    found = run("status")
    assert found.returncode == 2
    assert said in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("server", ["other.sock", "unix:///other.sock"])
def test_the_socket_may_be_named(run: Run, tmp_path: Path, server: str) -> None:
    agent = Agent(tmp_path / "other.sock")
    agent.says("status", WELL)
    path = server.replace("other.sock", f"{tmp_path}/other.sock").replace("////", "///")
    assert run("status", "--server", path).returncode == 0
    assert run("status", L7PROXY_SERVER=path).returncode == 0
    agent.close()


def test_an_endpoint_is_called_by_number_or_name() -> None:
    endpoints = WELL["endpoints"]
    assert status.pick(endpoints, "5") is endpoints[0]
    assert status.pick(endpoints, "default/backend") is endpoints[0]
    with pytest.raises(ConfigError):
        status.pick(endpoints, "55")


def test_what_an_agent_says_cannot_steer_the_terminal(run: Run, agent: Agent) -> None:
    agent.says("status", with_("policies.0.name", "\x1b[2J\n") | {"node": "\x1b[2J", "revision": 5})
    assert "\x1b" not in run("status").stdout


def test_what_policies_do_not_cover_is_said_and_no_fault(process: Run, agent: Agent) -> None:
    interface = {"interface": "net1", "network": "fast", "host": "", "addresses": ["172.16.0.5"]}
    found = with_("policies.0.host_network", ["default/exporter"])
    found["secondary_interfaces"] = [{"pod": "default/backend"} | interface]
    agent.says("status", found)
    shown = process("status")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.partition("Not covered:\n")[2].splitlines() == [
        "  pod default/backend: interface net1 (172.16.0.5) of network fast: no policy applies to it",
        "  CiliumNetworkPolicy default/l7 selects 1 hostNetwork pod, not enforced: default/exporter",
    ]
    agent.says("policies", {"policies": found["policies"]})
    assert "selects 1 hostNetwork pod, not enforced: default/exporter" in process("policy", "list").stdout
    endpoints = [WELL["endpoints"][0] | {"secondary": [interface]}, WELL["endpoints"][1]]
    agent.says("endpoints", {"endpoints": endpoints})
    assert "veth1 (not covered: net1)" in process("endpoint", "list").stdout
    line = "interface net1 (172.16.0.5) of network fast: not covered"
    assert line in process("endpoint", "get", "default/backend").stdout


@pytest.mark.parametrize(("reasons", "said", "code"), [([], "ready", 0), (["kernel: broken"], "kernel: broken", 1)])
def test_ready_is_what_readyz_answers(run: Run, agent: Agent, reasons: list[str], said: str, code: int) -> None:
    """A policy that is refused does not count."""
    refused = {"kind": "CiliumNetworkPolicy", "namespace": "a", "name": "b", "state": "refused", "reason": "x"}
    agent.says("status", with_("not_ready", reasons) | {"policies": [refused]})
    found = run("status", "--ready")
    assert (found.stdout, found.returncode) == (said + "\n", code)


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        (
            {"lease": "l7proxy/node.n1", "reported": True, "leader": "n2", "leading": False, "problems": []},
            "reported, lease l7proxy/node.n1; status of policies is written by n2",
        ),
        (
            {"lease": "l7proxy/node.n1", "reported": True, "leader": "n1", "leading": True, "problems": []},
            "reported, lease l7proxy/node.n1; status of policies is written by this node",
        ),
        (
            {"lease": "l7proxy/node.n1", "reported": False, "leader": "", "leading": False, "problems": ["403 x"]},
            "not reported yet, lease l7proxy/node.n1; status of policies is written by nobody yet; 403 x",
        ),
    ],
)
def test_what_the_cluster_is_told(run: Run, agent: Agent, cluster: dict[str, Any], said: str) -> None:
    """It says nothing about enforcement, so the exit code is 0."""
    agent.says("status", with_("cluster", cluster))
    found = run("status")
    assert f"Cluster    {said}" in found.stdout.splitlines()
    assert found.returncode == 0


def test_a_refused_policy_has_its_generation(run: Run, agent: Agent) -> None:
    refused = {"kind": "CiliumNetworkPolicy", "namespace": "a", "name": "b", "state": "refused", "reason": "x"}
    agent.says("status", with_("policies", [refused | {"generation": 4}]))
    assert "CiliumNetworkPolicy a/b (generation 4): refused: x" in run("status").stdout
