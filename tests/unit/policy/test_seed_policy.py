"""The policy of the demo, unchanged, with its expected verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from l7proxy.policy import decide, lang
from l7proxy.policy.compile import compile_policies

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

POLICY = Path(__file__).parents[2] / "data" / "cilium-l7-policy.yaml"
NEAREST = "no rule matched; nearest: policy default/l7-policy rule"

ROWS = [
    ("GET below /api", "GET /api/x", [], ""),
    ("GET of /api itself", "GET /api", [], f"{NEAREST} 1, method GET matched, path does not match /api/.*"),
    ("GET elsewhere", "GET /admin", [], f"{NEAREST} 1, method GET matched, path does not match /api/.*"),
    ("POST without a token", "POST /api/data", [], f"{NEAREST} 2, method POST matched, header X-Token missing"),
    ("POST with a token", "POST /api/data", ["X-Token: t"], ""),
    (
        "POST with a token elsewhere",
        "POST /api/other",
        ["X-Token: t"],
        f"{NEAREST} 2, method POST matched, path does not match /api/data",
    ),
    ("DELETE", "DELETE /api/x", [], f"{NEAREST} 1, path /api/.* matched, method does not match GET"),
]


def land(bench: Bench, namespace: str = "default") -> decide.PortPolicy:
    """The verdict for app=frontend of a namespace on port 80 of app=backend."""
    document = yaml.safe_load(POLICY.read_text())
    rules = lang.parse(document)
    frontend = bench.pod(700, namespace, app="frontend")
    backend = bench.endpoint(1, "default", app="backend")
    identities = bench.identities_for(rules) | {700: frontend}
    return decide.port(compile_policies(rules, [backend], identities)[1].ingress, 700, 6, 80)


@pytest.mark.parametrize(("line", "headers", "reason"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_the_frontend(line: str, headers: list[str], reason: str, bench: Bench) -> None:
    policy = land(bench)
    assert policy.l4.verdict.name == "REDIRECTED"
    decision = policy.judge(bench.request(line, *headers))
    assert (decision.verdict.name, decision.reason) == ("DROPPED" if reason else "FORWARDED", reason)


def test_a_frontend_of_another_namespace_is_a_stranger(bench: Bench) -> None:
    decision = land(bench, "elsewhere").l4
    assert decision.reason == "no rule of policy default/l7-policy allows identity 700 to 80/TCP"


def test_the_token_s_pattern_is_noted() -> None:
    (note,) = lang.notes(yaml.safe_load(POLICY.read_text()))
    assert note.at == "spec.ingress[0].toPorts[0].rules.http[1].headers[0]"
