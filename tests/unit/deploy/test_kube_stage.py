"""A step of `make test-kube-quick`: its limit, its end, and what it leaves."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from deploy.cluster.plan import Cluster
from l7proxy.lab import processes
from tests.kube import stage

STARTS_ONE_MORE = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(f"{child.pid}\\n")
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "failing" in sys.argv:
    sys.exit(3)
while True:
    signal.pause()
"""


def step(path: Path, *words: str, limit: float) -> stage.Step:
    return stage.Step("a trial", [sys.executable, "-c", STARTS_ONE_MORE, str(path), *words], limit)


def child(path: Path) -> processes.Process:
    """It has no time to end before it is asked for."""
    return processes.identify(int(path.read_text()))


def assert_ended(process: processes.Process) -> None:
    while process.alive:
        time.sleep(0.01)


def test_a_step_that_passes_says_what_it_is_and_its_limit(capfd: pytest.CaptureFixture[str]) -> None:
    program = "import os; print(os.environ['GIVEN'])"
    assert stage.run(stage.Step("a trial", [sys.executable, "-c", program], 120, {"GIVEN": "here"})) > 0
    assert capfd.readouterr().out.splitlines() == ["== a trial (limit: 2 min)", "here"]


def test_a_step_that_fails_is_named_and_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(stage.StepFailedError, match="a trial: exit code 3"):
        stage.run(step(tmp_path / "pid", "failing", limit=120))
    assert_ended(child(tmp_path / "pid"))


@pytest.mark.parametrize("words", [[], ["stubborn"]])
def test_a_step_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path, words: list[str]) -> None:
    begun = tmp_path / "pid"
    with pytest.raises(stage.StepFailedError, match="a trial: not done within"):
        stage.run(step(begun, *words, limit=2), grace=0.1)
    if begun.exists():  # on a machine with much other work it may not have come so far
        assert_ended(child(begun))


def test_leaving_the_tests_out_must_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("L7PROXY_SKIP_KUBE", "1")
    assert stage.main([]) == 0
    assert capsys.readouterr().out == "tests/kube: left out, since L7PROXY_SKIP_KUBE is set\n"


def test_every_step_has_a_limit_and_the_tests_are_those_named() -> None:
    cluster = Cluster("trial")
    steps = [*stage.before(cluster), stage.tests(cluster, ())]
    assert all(0 < one.limit <= 3600 for one in steps)
    assert steps[-1].environment["CLUSTER_NAME"] == "trial"
    assert set(stage.TESTS) <= set(steps[-1].command)
    assert all((Path(__file__).parents[3] / one).exists() for one in stage.TESTS)
    assert stage.tests(cluster, ["tests/kube/x.py"]).command[-1] == "tests/kube/x.py"
