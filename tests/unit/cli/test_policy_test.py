"""`policy test`: what passes, what fails and how it is reported, and errors in a test file."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

import pytest

DEMO = Path(__file__).resolve().parents[3] / "deploy"
HEAD = f"manifests: [{DEMO}/demo]\ncases:\n"
CASE = "{from: default/frontend, to: default/backend, port: 80, http: GET /api/x, expect: allow}"


class Run(Protocol):
    def __call__(self, *arguments: str, stdin: str = "", **extra: Any) -> subprocess.CompletedProcess[str]: ...


def book(directory: Path, *cases: str, head: str = HEAD) -> str:
    file = directory / "cases.yaml"
    file.write_text(head + "".join(f"- {case}\n" for case in cases))
    return str(file)


def test_the_demos_own_cases_hold(run: Run) -> None:
    done = run("policy", "test", str(DEMO / "policy-tests" / "demo.yaml"))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "8 cases, all passed")


@pytest.mark.parametrize(
    ("changed", "failure"),
    [
        (("expect: allow", "expect: deny"), "expected deny, got FORWARDED by CiliumNetworkPolicy default/l7-policy"),
        (("GET /api/x", "GET /x"), "expected allow, got DROPPED by CiliumNetworkPolicy default/l7-policy"),
        (("expect: allow", "expect: audit"), "expected audit, got FORWARDED"),
        (("expect: allow", "expect: redirect"), "expected redirect, got FORWARDED"),
        (
            ("expect: allow", "expect: allow, because: other"),
            "FORWARDED as expected, but its reason does not contain 'other'",
        ),
        (("default/frontend", "default/nobody"), "cannot be evaluated: no pod default/nobody in the manifests"),
        (("port: 80", "port: 80/XX"), "cannot be evaluated: --port 80/XX: unknown protocol 'XX'"),
    ],
)
def test_a_case_that_does_not_hold_fails_and_says_why(
    run: Run, tmp_path: Path, changed: tuple[str, str], failure: str
) -> None:
    done = run("policy", "test", book(tmp_path, CASE, CASE.replace(*changed)))
    assert done.returncode == 1
    assert f"{tmp_path}/cases.yaml:4: {failure}" in done.stdout
    assert done.stdout.splitlines()[-1] == "2 cases, 1 failed"


def test_tap(run: Run, tmp_path: Path) -> None:
    cases = [CASE.replace("{", "{name: 'a #1', "), CASE.replace("expect: allow", "expect: deny")]
    done = run("policy", "test", "-o", "tap", book(tmp_path, *cases))
    lines = done.stdout.splitlines()
    assert lines[:3] == ["TAP version 13", "1..2", "ok 1 - a \\#1"]
    assert lines[3].startswith("not ok 2 - default/frontend -> default/backend 80 GET /api/x: deny")
    assert all(line.startswith("#") for line in lines[4:])


def test_junit(run: Run, tmp_path: Path) -> None:
    done = run("policy", "test", "-o", "junit", book(tmp_path, CASE, CASE.replace("expect: allow", "expect: deny")))
    assert done.returncode == 1
    (suite,) = ElementTree.fromstring(done.stdout)
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    good, bad = suite
    assert list(good) == []
    assert (bad.find("failure") is not None, bad.get("line")) == (True, "4")


@pytest.mark.parametrize(
    ("head", "case", "message"),
    [
        (
            HEAD,
            CASE.replace("expect: allow", "expect: pass"),
            ":3: cases[0].expect: 'pass' is not supported, must be one of allow, deny",
        ),
        (HEAD, CASE.replace("http", "htp"), ":3: cases[0].htp: unknown field, must be one of name, from"),
        (HEAD, CASE.replace("from: default/frontend, ", ""), ":3: cases[0].from: is missing"),
        ("cases:\n", CASE, ":1: manifests: is required"),
        ("manifests: [gone]\ncases:\n", CASE, "gone: no such file or directory"),
        ("- ", CASE, "must be a mapping with `manifests` and `cases`"),
        ("manifests: [.]\nmanifests: [.]\ncases:\n", CASE, "cases.yaml:2:"),
    ],
)
def test_a_file_that_is_wrong_is_exit_code_2(run: Run, tmp_path: Path, head: str, case: str, message: str) -> None:
    done = run("policy", "test", book(tmp_path, case, head=head))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_broken_manifests_prove_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "p.yaml").write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: 7}\n")
    done = run("policy", "test", book(tmp_path, CASE, head="manifests: [m]\ncases:\n"))
    assert done.returncode == 2
    assert "p.yaml:3: metadata.name" in done.stderr
