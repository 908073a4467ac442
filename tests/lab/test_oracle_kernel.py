"""Random policy sets of all languages on real packets: the oracle predicts what gets through, in both directions.

Each pod sends each of its queries over a new connection; an HTTP port also gets a request. TCP only: a refused
datagram looks like a lost one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from tests.lab.conftest import Cluster
from tests.oracle import documents as writing
from tests.oracle.cast import NODES, PODS, SETS, SPACES, Who
from tests.oracle.compare import ASKS
from tests.oracle.evaluate import Ask, Flow, judge

pytestmark = pytest.mark.lab

SEED = int(os.environ.get("ORACLE_SEED", "1"))
KINDS = frozenset(os.environ.get("ORACLE_KINDS", "").split())
POLICY_SETS = int(os.environ.get("ORACLE_SETS", "10"))
FLOWS = 100
"""Queries per policy set: a run makes POLICY_SETS times as many."""
PORTS = (80, 8080, 443)
PROBE = """
import http.client, json, sys
for line in sys.stdin:
    answers = []
    for address, port, method, path, headers in json.loads(line):
        try:
            connection = http.client.HTTPConnection(address, port, timeout=5)
            connection.request(method, path, headers=dict(headers))
            answers.append(connection.getresponse().status)
        except OSError as error:
            answers.append(type(error).__name__)
        finally:
            connection.close()
    print(json.dumps(answers), flush=True)
"""


@dataclass(frozen=True)
class Question:
    source: Who
    target: Who
    port: int
    ask: Ask

    def is_read(self, documents: list[dict[str, Any]]) -> bool:
        """Whether HTTP rules of either end apply to the query."""
        return "http" in (judge(documents, flow, None) for flow in self._flows())

    def _flows(self) -> tuple[Flow, Flow]:
        """The query as seen by the sender's policy, and by the receiver's."""
        out = Flow(self.source, self.target, "egress", "TCP", self.port)
        return out, Flow(self.target, self.source, "ingress", "TCP", self.port)

    def expected(self, documents: list[dict[str, Any]]) -> int | str:
        """What the client sees: its answer, 403 where HTTP rules of either end refuse, or a refused connection.

        A proxy on the sender's node has accepted before the other node refuses: then the server is unreachable, 503.
        """
        out, into = self._flows()
        leaving, arriving = judge(documents, out, None), judge(documents, into, None)
        accepted_first = leaving == "http" and self.source.node != self.target.node
        if leaving == "deny" or (arriving == "deny" and not accepted_first):
            return "refused"
        if leaving == "http" and judge(documents, out, self.ask) == "deny":
            return 403
        if arriving == "deny":
            return 503
        return 403 if arriving == "http" and judge(documents, into, self.ask) == "deny" else 200


def manifests() -> str:
    found: list[dict[str, Any]] = []
    for name, labels in SPACES.items():
        found.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    for node in NODES:
        spec: dict[str, Any] = {"podCIDR": f"10.0.{node.name[1]}.0/24"}
        found.append({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}, "spec": spec})
    for one in SETS:
        named: dict[str, Any] = {"name": one.name, "labels": one.labels} | (
            {"namespace": one.space} if one.space else {}
        )
        kind = "NetworkSet" if one.space else "GlobalNetworkSet"
        nets = {"nets": list(one.prefixes)}
        found.append({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": named, "spec": nets})
    for pod in PODS:
        serve = ",".join(f"http:{port}" for port in PORTS)
        metadata: dict[str, Any] = {
            "name": pod.name, "namespace": pod.space, "labels": pod.labels,
            "annotations": {"lab.l7proxy.io/serve": serve},
        }  # fmt: skip
        ports = [{"name": name, "protocol": protocol, "containerPort": port} for name, protocol, port in pod.ports]
        spec = {"nodeName": pod.node, "containers": [{"name": "c", "image": "x", "ports": ports}]}
        found.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return yaml.safe_dump_all(found)


@pytest.fixture(scope="module", params=["nftables", "iptables"])
def land(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    file = tmp_path_factory.mktemp("oracle") / "cluster.yaml"
    file.write_text(manifests())
    lab = Cluster(f"o{os.getpid()}{request.param[0]}")
    lab.run("up", "-f", str(file), "--backend", request.param)
    try:
        yield lab
    finally:
        lab.run("down")


def placed(lab: Cluster) -> list[Who]:
    """The cast, with the addresses that the lab assigned."""
    found = []
    for pod in PODS:
        shown = lab.exec(f"{pod.space}/{pod.name}", "ip", "-4", "-o", "addr", "show", "dev", "eth0").stdout
        found.append(replace(pod, address=shown.split()[3].partition("/")[0]))
    return found


def test_the_kernel_and_the_workers_do_what_the_oracle_says(land: Cluster, tmp_path: Path) -> None:
    pods = placed(land)
    with ExitStack() as stack:
        asking = {pod.name: stack.enter_context(land.talk(f"{pod.space}/{pod.name}", PROBE)) for pod in pods}
        before = ""
        for seed in range(SEED, SEED + POLICY_SETS):
            dice = Random(seed)
            documents = writing.some(dice, dice.randint(2, 5), KINDS)
            if before:
                land.delete(before, tmp_path)
            before = yaml.safe_dump_all(documents)
            land.apply(before, tmp_path)
            read = [one for one in _every_way(pods) if one.is_read(documents)]
            questions = [_question(dice, pods, read) for _ in range(FLOWS)]
            wrong = [
                f"seed {seed}: {question}: expected {question.expected(documents)}, seen {seen}"
                for question, seen in zip(questions, _answers(asking, questions), strict=True)
                if seen != question.expected(documents)
            ]
            assert not wrong, "\n".join(wrong[:5]) + "\n" + "\n".join(map(json.dumps, documents))


def _every_way(pods: list[Who]) -> list[Question]:
    return [Question(*ends, port, ASKS[0]) for ends in permutations(pods, 2) for port in PORTS]


def _question(dice: Random, pods: list[Who], read: list[Question]) -> Question:
    """Any query; every other one has its requests evaluated, if there are such queries."""
    if read and dice.random() < 0.5:
        return replace(dice.choice(read), ask=dice.choice(ASKS))
    source, target = dice.sample(pods, 2)
    return Question(source, target, dice.choice(PORTS), dice.choice(ASKS))


def _headers(ask: Ask) -> list[tuple[str, str]]:
    return [*ask.headers, ("host", ask.host)]


def _answers(asking: dict[str, subprocess.Popen[str]], questions: list[Question]) -> list[int | str]:
    """In the order of the queries; all pods run at the same time."""
    own = {name: [one for one in questions if one.source.name == name] for name in asking}
    for name, process in asking.items():
        assert process.stdin is not None
        asked = [(one.target.address, one.port, one.ask.method, one.ask.path, _headers(one.ask)) for one in own[name]]
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
    found: dict[str, Iterator[int | str]] = {}
    for name, process in asking.items():
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        found[name] = iter(
            ["refused" if one in ("ConnectionRefusedError", "ConnectionResetError") else one for one in told]
        )
    return [next(found[one.source.name]) for one in questions]
