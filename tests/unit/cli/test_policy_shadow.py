"""`policy shadow`: a line, or a flow with the field `shadow`, for each flow that would have another verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.seen_flows import lines, made, pod
from tests.unit.cli.conftest import Agent, Run

FRONT, BACK = pod("front"), pod("back")
FLOWS = [
    json.loads(line)
    for line in lines(
        made(FRONT, BACK, http="GET http://back/x"),
        made(FRONT, BACK, http="GET http://back/\x1b[31m", verdict="DROPPED"),
        made(FRONT, BACK, 81),
        made(FRONT, BACK),
    ).splitlines()
]
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: back}}
  ingress:
  - fromEndpoints: [{}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: "/x.*"}]}}]
"""


@pytest.fixture
def new(tmp_path: Path) -> str:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "p.yaml").write_text(POLICY)
    return str(tmp_path / "new")


def test_changes_as_lines(run: Run, agent: Agent, new: str) -> None:
    agent.says("observe", *FLOWS)
    done = run("policy", "shadow", "-f", new, "--no-follow")
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert "default/front -> default/back 81/TCP was allowed, would be denied: no rule of policy default/p" in line
    assert done.stderr == "would be: 1 denied, 1 unchanged, 2 unjudged\n"
    shown = run("policy", "shadow", "-f", new, "--no-follow", "--unjudged").stdout
    assert len(shown.splitlines()) == 3
    assert "\x1b" not in shown


def test_changes_as_flows(run: Run, agent: Agent, new: str) -> None:
    agent.says("observe", *FLOWS)
    done = run("policy", "shadow", "-f", new, "--no-follow", "-o", "json")
    (found,) = map(json.loads, done.stdout.splitlines())
    assert found["flow"]["l4"]["TCP"]["destination_port"] == 81
    assert found["shadow"]["would"] == "denied"
    assert found["shadow"]["policy"]["name"] == "p"
    assert found["shadow"]["direction"] == "ingress"


def test_the_agents_own_shadow_policies(run: Run, agent: Agent, new: str) -> None:
    agent.says("observe", *FLOWS)
    agent.says("status", {"shadow": {"policies": new}})
    assert "would be: 1 denied" in run("policy", "shadow").stderr
    assert agent.asked[-1] == {"method": "observe", "follow": True, "since": "1970-01-01T00:00:00Z"}
    agent.says("status", {"shadow": None})
    done = run("policy", "shadow")
    assert done.returncode == 2
    assert "the agent has no shadow-policies: name policies with -f" in done.stderr
