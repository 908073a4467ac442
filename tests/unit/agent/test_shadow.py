"""A second set of policies on flows as they come; and the agent's sink that counts what they would change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from l7proxy.agent.shadow import ShadowSink
from l7proxy.errors import ConfigError
from l7proxy.flows.event import Lost
from l7proxy.setting_definitions import Settings
from tests.support.seen_flows import made, pod, read

FRONT, BACK = pod("front"), pod("back")
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: %s, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: back}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: front}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: "%s"}]}}]
"""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "p.yaml").write_text(POLICY % ("p", "/x.*"))
    return tmp_path


def sink(directory: Path, clock: Clock | None = None) -> ShadowSink:
    return ShadowSink(Settings(shadow_policies=str(directory)), now=clock or Clock())


def request(path: str, **more: Any) -> dict[str, Any]:
    return made(FRONT, BACK, http=f"GET http://back{path}", **more)


def test_flows_are_counted_by_what_would_change(directory: Path) -> None:
    shadow = sink(directory)
    shadow.consume(
        read(
            request("/x"),
            request("/y"),
            request("/y"),
            request("/x", verdict="DROPPED"),
            made(FRONT, BACK, 81),
            made(FRONT, BACK),
            made(BACK, FRONT, 40000, is_reply=True),
        )
    )
    assert shadow.counts == {
        ("unchanged", "ingress", ""): 1,
        ("denied", "ingress", "default/p"): 3,
        ("allowed", "ingress", "default/p"): 1,
        ("unjudged", "ingress", ""): 1,
    }
    assert shadow.report() == {
        "policies": str(directory),
        "problem": "",
        "would": {"unchanged": 1, "denied": 3, "allowed": 1, "unjudged": 1},
    }


def test_changed_files_are_read_again_and_bad_ones_change_nothing(directory: Path) -> None:
    clock = Clock()
    shadow = sink(directory, clock)
    shadow.consume(read(request("/y")))
    (directory / "p.yaml").write_text(POLICY % ("other", "/.*"))
    clock.now = 10.0
    shadow.consume(read(request("/y")))
    assert shadow.counts == {("denied", "ingress", "default/p"): 1, ("unchanged", "ingress", ""): 1}
    (directory / "p.yaml").write_text("kind: [")
    clock.now = 20.0
    shadow.consume(read(request("/y")))
    assert shadow.problem.startswith("shadow-policies: ")
    assert shadow.counts["unchanged", "ingress", ""] == 2


def test_what_cannot_be_judged_for_want_of_policies_is_lost(directory: Path) -> None:
    (directory / "p.yaml").write_text("kind: [")
    shadow = sink(directory)
    shadow.consume([*read(request("/y")), Lost(3, "HUBBLE_RING_BUFFER", 1)])
    assert (shadow.lost, shadow.counts) == (1, {})


def test_a_directory_that_does_not_exist_is_an_error_at_start() -> None:
    with pytest.raises(ConfigError, match="shadow-policies: /nowhere: no such directory"):
        sink(Path("/nowhere"))
